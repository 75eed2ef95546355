"""Docstrings, comments and messages avoid the words and inversions that read as if translated."""

import io
import re
import tokenize
from pathlib import Path

import pytest

import layertap

_PACKAGE = Path(layertap.__file__).parent

_ARCHAIC = re.compile(
    r"\b(anew|whereof|thereof|bears|but for|as far as|tells of|goes on|garbled|handed on|far end|mend"
    r"|stands(?! for\b| in for\b))\b",
    re.IGNORECASE,
)
_INVERTED = re.compile(
    r"(?:^|[.:;]\s)(?:Checked|Compared|Counted|Kept|Left|Measured|Read|Refused|Said|Stored|Told|Written) (?:is|are)\b"
)
_TEXT = {tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}


def _find(source: str) -> list[str]:
    """The line and the words of everything in a source file that a reader would stumble over."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    texts = [(token.start[0], " ".join(token.string.split())) for token in tokens if token.type in _TEXT]
    return [
        f"line {line}: {found[0].strip()!r}"
        for line, text in texts
        for rule in (_ARCHAIC, _INVERTED)
        for found in rule.finditer(text.strip("\"'# "))
    ]


FILES = sorted(_PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(_PACKAGE).as_posix())
def test_text_is_plain_english(path: Path) -> None:
    assert not _find(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('"""Compared are the first rows."""', ["line 1: 'Compared are'"]),
        ("x = 1  # counted anew", ["line 1: 'anew'"]),
        ('\nraise ValueError(f"{x}: goes on")', ["line 2: 'goes on'"]),
        ('"""What stands there; kept are few."""', ["line 1: 'stands'"]),
        ('"""{worker} stands for the id. The rows are kept."""', []),
    ],
)
def test_the_rules_find_what_they_are_for_and_nothing_else(source: str, found: list[str]) -> None:
    assert _find(source) == found
