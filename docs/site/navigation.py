"""The navigation of the site, read from `docs/index.md`.

That page is a list of all pages under headings, for people. The same lists are the navigation of
the site, so a page that the lists lack is not in the site either, and the strict build says so.
"""

import posixpath
import re

from sphinx.application import Sphinx

_INDEX = "docs/index"
_HEADING = re.compile(r"^## (.+)$", re.MULTILINE)
_LINK = re.compile(r"^[-|] ?\[([^\]]+)\]\(([^)#]+\.md)\)", re.MULTILINE)


def add_navigation(app: Sphinx, page: str, source: list[str]) -> None:
    """Add to the index a hidden toctree, as Sphinx calls it, for each heading with links below."""
    if page == _INDEX:
        source[0] += "".join(_toctree(caption, links) for caption, links in sections(source[0]))


def sections(text: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """The headings of the index, each with the names and pages that its list links to."""
    parts = _HEADING.split(text)
    found = zip(parts[1::2], parts[2::2], strict=True)
    return [(caption, _LINK.findall(body)) for caption, body in found if _LINK.search(body)]


def _toctree(caption: str, links: list[tuple[str, str]]) -> str:
    lines = [f"{name} </{_page(link)}>" for name, link in links]
    return "\n".join(("", "```{toctree}", ":hidden:", f":caption: {caption}", "", *lines, "```", ""))


def _page(link: str) -> str:
    """The name that Sphinx has for a page: its path from the root of the repository."""
    return posixpath.normpath(posixpath.join("docs", link)).removesuffix(".md")
