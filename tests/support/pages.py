"""The blocks of code in pages of Markdown, and the commands of Layertap in them."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

from commands import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "examples" / "README.md"])

_STARTS = {
    "layertap": (),
    "python extract_activations.py": ("extract",),
    "python create_dataset_streams.py": ("streams",),
    "./scripts/manage_tpus.sh": ("tpu",),
}
_BEGINNING = re.compile(rf"(?:\$ )?({'|'.join(map(re.escape, _STARTS))})(?= [a-z.-])")


@dataclass(frozen=True)
class Block:
    """One block: `language` is that of its fence, or `indented` if it has none."""

    page: Path
    line: int
    language: str
    text: str
    above: str
    """The line above it, which may be a mark such as `<!-- a test runs this -->`."""


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page, in their order."""
    lines = page.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        above = lines[number - 1] if number else ""
        if fence := re.fullmatch(r" *```(\w*)", lines[number]):
            end = next(i for i in range(number + 1, len(lines)) if lines[i].strip() == "```")
            yield Block(page, number + 1, fence.group(1), dedent("\n".join(lines[number + 1 : end])), above)
            number = end
        elif lines[number].startswith("    ") and not above.strip():
            end = number
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            yield Block(page, number + 1, "indented", "\n".join(it[4:] for it in lines[number:end]).rstrip(), above)
            number = end - 1
        number += 1


def printed_commands(text: str) -> Iterator[list[str]]:
    """The commands of Layertap in a block: for each the words that follow `layertap`."""
    return map(_words, _lines(text))


def _lines(text: str) -> Iterator[str]:
    """Each command as one line, even if it continues on the next, by `\\` or in quotes."""
    open_quote = ""
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        command = open_quote + line
        open_quote = ""
        if _BEGINNING.match(command):
            if command.count('"') % 2:
                open_quote = f"{command} "
            else:
                yield command


def _words(line: str) -> list[str]:
    """Return the words that follow `layertap`, without what follows a command in a page."""
    start = _BEGINNING.match(line)
    assert start
    rest = re.split(r"\s{2,}#|\s#\s|\s{4,}(?=[a-z]+://)|\s[|>]\s", line[start.end() :])[0]
    return [*_STARTS[start.group(1)], *shlex.split(rest)]
