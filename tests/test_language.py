"""Docstrings, comments, messages and pages avoid words and inversions that read as if translated.

docs/LOG.md is dated and stays as it was written. docs/commands.md and docs/api.md repeat what the
source says.
"""

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[1]

_ARCHAIC = re.compile(
    r"\b(anew|whereof|thereof|bears|but for|as far as|tells of|goes on|gone on|going on|go on"
    r"|garbled|handed on|far end|mend|lest"
    r"|stands(?! for\b| in for\b))\b",
    re.IGNORECASE,
)
_INVERTED = re.compile(
    r"(?:^|[.:;]\s)(?:Checked|Compared|Counted|Drawn|Found|Given|Kept|Known|Left|Marked|Measured|Named"
    r"|Promised|Read|Refused|Said|Seen|Shown|Stored|Taken|Tested|Told|Tried|Used|Written) (?:is|are)\b"
)
_TEXT = {tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}

_PYTHON = sorted(
    path
    for folder in ("src", "tests", "benchmarks", "examples", "docs/site")
    for path in (_ROOT / folder).rglob("*.py")
    if path != Path(__file__)
)
_ASSETS = sorted((_ROOT / "src").rglob("*.js")) + sorted((_ROOT / "src").rglob("*.html"))
_GENERATED_OR_DATED = {"LOG.md", "commands.md", "api.md"}
_PAGES = [
    *(_ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "examples/README.md")),
    *sorted(path for path in (_ROOT / "docs").rglob("*.md") if path.name not in _GENERATED_OR_DATED),
]


def _find(texts: Iterator[tuple[int, str]]) -> list[str]:
    """Return the line and the words of everything in numbered texts that a reader would stumble
    over.
    """
    return [
        f"line {line}: {found[0].strip()!r}"
        for line, text in texts
        for rule in (_ARCHAIC, _INVERTED)
        for found in rule.finditer(" ".join(text.split()))
    ]


def _python_texts(source: str) -> Iterator[tuple[int, str]]:
    """Yield the strings and comments of a Python file."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in _TEXT:
            yield token.start[0], token.string.strip("\"'# \n")


def _paragraphs(page: str) -> Iterator[tuple[int, str]]:
    """Yield the prose of a page in Markdown, without its code: paragraphs, list items, rows."""
    fenced, start, lines = False, 0, list[str]()
    for number, line in enumerate([*page.splitlines(), ""], 1):
        fenced ^= line.startswith("```")
        is_code = fenced or line.startswith(("    ", "```"))
        begins = is_code or not line.strip() or line.lstrip().startswith(("|", "#", "- ", "1. "))
        if begins and lines:
            yield start, " ".join(lines)
            lines = []
        if not is_code and line.strip():
            start = start if lines else number
            lines.append(line.lstrip(" -|#"))


def _name(path: Path) -> str:
    return path.relative_to(_ROOT).as_posix()


@pytest.mark.parametrize("path", _PYTHON, ids=_name)
def test_source_is_plain_english(path: Path) -> None:
    assert not _find(_python_texts(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", _ASSETS, ids=_name)
def test_the_page_of_a_run_is_plain_english(path: Path) -> None:
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    assert not _find((number, line.strip(" /")) for number, line in lines)


@pytest.mark.parametrize("path", _PAGES, ids=_name)
def test_pages_are_plain_english(path: Path) -> None:
    assert not _find(_paragraphs(path.read_text(encoding="utf-8")))


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
def test_the_rules_find_what_they_are_for_in_python_and_nothing_else(source: str, found: list[str]) -> None:
    assert _find(_python_texts(source)) == found


@pytest.mark.parametrize(
    ("page", "found"),
    [
        ("A sentence. Compared\nare the rows.", ["line 1: '. Compared are'"]),
        ("# Title\n\n- it goes\n  on\n- fine", ["line 3: 'goes on'"]),
        ("| a | it bears |", ["line 1: 'bears'"]),
        ("    goes on\n\n```\nanew\n```\nafter", []),
    ],
)
def test_the_rules_find_what_they_are_for_in_prose_and_not_in_code(page: str, found: list[str]) -> None:
    assert _find(_paragraphs(page)) == found
