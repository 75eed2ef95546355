"""The blocks of code in pages of Markdown."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from commands import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "examples" / "README.md"])


@dataclass(frozen=True)
class Block:
    """One block: `language` is that of its fence, and `indented` where it has none."""

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
            yield Block(page, number + 1, fence.group(1), "\n".join(lines[number + 1 : end]), above)
            number = end
        elif lines[number].startswith("    ") and not above.strip():
            end = number
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            yield Block(page, number + 1, "indented", "\n".join(it[4:] for it in lines[number:end]).rstrip(), above)
            number = end - 1
        number += 1
