"""Diagrams: a Mermaid block in a page, and beside it the picture that the site shows in its place.

A code host draws the block by itself. The site shows an SVG file of `docs/diagrams`, which
`make diagrams` draws and the repository keeps: so the site has no script of several megabytes, asks
no other server for one, and to build it you need neither a browser nor npm. The price is that
whoever changes a diagram has to draw it. A picture carries the digest of the block that it shows,
and the build fails where they differ.

A block says what it shows in a line `accTitle: ...`. That names its picture, and is what is read
out to whoever does not see it.
"""

import hashlib
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]
_FOLDER = "docs/diagrams"
_BLOCK = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_TITLE = re.compile(r"^ *accTitle: *(.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Diagram:
    """One Mermaid block."""

    title: str
    source: str

    @property
    def path(self) -> str:
        """Where its picture is, from the root of the repository."""
        return f"{_FOLDER}/{re.sub('[^a-z0-9]+', '-', self.title.lower()).strip('-')}.svg"

    @property
    def mark(self) -> str:
        """What its picture holds if it shows this block as it is."""
        return f"<!-- sha256 of its Mermaid block: {hashlib.sha256(self.source.encode()).hexdigest()} -->"

    def is_drawn(self) -> bool:
        """Whether there is a picture of the block as it is."""
        picture = ROOT / self.path
        return picture.exists() and self.mark in picture.read_text(encoding="utf-8")


def find_diagrams(text: str, page: str) -> Iterator[Diagram]:
    """The Mermaid blocks of a page. Raises ValueError where one has no title."""
    for match in _BLOCK.finditer(text):
        yield _read_block(match, page)


def replace_diagrams(app: "Sphinx", page: str, source: list[str]) -> None:
    """Put pictures in the place of blocks. Raises ValueError where one is missing or old."""

    def picture(match: re.Match[str]) -> str:
        diagram = _read_block(match, page)
        if not diagram.is_drawn():
            raise ValueError(f"{page}: the diagram '{diagram.title}' changed since it was drawn: make diagrams")
        return f"![{diagram.title}]({posixpath.relpath(diagram.path, posixpath.dirname(page) or '.')})"

    source[0] = _BLOCK.sub(picture, source[0])


def _read_block(match: re.Match[str], page: str) -> Diagram:
    source = match.group(1)
    title = _TITLE.search(source)
    if title is None:
        raise ValueError(f"{page}: a Mermaid block says what it shows in a line 'accTitle: ...'")
    return Diagram(title.group(1).strip(), source)
