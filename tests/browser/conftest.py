"""The system's Chromium, driven by Playwright, and the page of a small run.

These tests run in an environment of their own (`make browser`), without tests/conftest.py. Browsers
that Playwright would download cannot be had everywhere, so it is pointed at the system's.
LAYERTAP_BROWSER names another one. Screenshots are kept in the folder LAYERTAP_SCREENSHOTS.

What `wait_for_function` waits for is written as a function, `() => ...`. Playwright evaluates a
bare expression again at every frame, and from the second one on the policy of the page refuses
that. A test would pass only where the page is ready at the first look.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

import layertap
from layertap.cli import main
from layertap.demo.checkpoint import write_checkpoint
from layertap.demo.tasks import make_tasks, write_tasks

_NAMES = ("chromium", "chromium-browser", "google-chrome")
Open = Callable[..., Page]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    program = os.environ.get("LAYERTAP_BROWSER") or next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None:
        pytest.skip("needs Chromium: install your system's package, or name a browser by LAYERTAP_BROWSER")
    with sync_playwright() as playwright:
        # Its sandbox needs rights that containers do not give; the pages here are our own.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sites and four layers of the demo's model, on ARC tasks."""
    folder = tmp_path_factory.mktemp("run")
    write_checkpoint(folder / "model", "tiny")
    write_tasks(folder / "tasks.jsonl", make_tasks(6, seed=0))
    layertap.extract(
        dataset_path=folder / "tasks.jsonl",
        model_path=folder / "model",
        activation_type=["residual", "mlp"],
        predictions_per_task=2,
        format="safetensors",
        certify=2,
        output_dir=folder / "out",
        checkpointing=False,
    )
    return folder / "out"


@pytest.fixture(scope="session")
def page_file(run: Path) -> Path:
    path = run.parent / "page.html"
    assert main(["view", str(run), "--out", str(path), "--channels", "3"]) == 0
    return path


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """Open a file in a window of some width; the test fails if anything is in the console."""
    with _opened(browser) as opener:
        yield opener


@contextmanager
def _opened(browser: Browser) -> Iterator[Open]:
    complaints: list[str] = []
    pages: list[Page] = []

    def open_page(path: Path, link: str = "", width: int = 1280) -> Page:
        page = browser.new_page(viewport={"width": width, "height": 900})
        pages.append(page)
        page.on("console", lambda message: _note(complaints, message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith("file:") else complaints.append(request.url))
        page.goto(f"{path.as_uri()}{link}")
        page.wait_for_selector("body[data-ready]")
        return page

    yield open_page
    for page in pages:
        page.close()
    assert complaints == []


def _note(complaints: list[str], text: str) -> None:
    """Record what the console says, except messages that tests cause by reading pixels."""
    if not text.startswith("Canvas2D: Multiple readback"):
        complaints.append(text)


@pytest.fixture
def keep() -> Callable[[Page, str], None]:
    """Keep a screenshot, if a person asked for screenshots."""
    folder = os.environ.get("LAYERTAP_SCREENSHOTS")

    def keep(page: Page, name: str) -> None:
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)

    return keep
