"""The site of `make docs` in a real browser: each page opens by itself and shows its content."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

_SITE = Path(__file__).parents[2] / "build" / "docs"
_ENTRY = Path("index.html")  # sends the browser to docs/index.html
_PAGES = sorted({path.relative_to(_SITE) for path in _SITE.rglob("*.html")} - {_ENTRY})
_BROKEN = "() => [...document.images].filter(it => it.complete && !it.naturalWidth).map(it => it.src)"


@pytest.fixture
def tab(browser: Browser) -> Iterator[Page]:
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    yield tab
    tab.close()


def test_the_site_was_built() -> None:
    if not _PAGES:
        pytest.skip("needs the site: make docs")
    assert Path("docs/index.html") in _PAGES


@pytest.mark.parametrize("name", _PAGES, ids=str)
def test_a_page_asks_no_server_for_anything_and_has_its_pictures(tab: Page, name: Path) -> None:
    complaints: list[str] = []
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("request", lambda it: None if it.url.startswith(("file:", "data:")) else complaints.append(it.url))
    tab.goto((_SITE / name).as_uri(), wait_until="load")
    tab.evaluate(
        "() => Promise.all([...document.images].map(it => (it.loading = 'eager', it.decode().catch(() => 0))))"
    )
    assert tab.evaluate(_BROKEN) == []
    assert complaints == []
