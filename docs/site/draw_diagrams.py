"""Draw the diagrams that changed, by Mermaid in the system's Chromium: `make diagrams`.

    python docs/site/draw_diagrams.py FOLDER/mermaid.min.js PAGE ...

Text is drawn as SVG text and not as HTML inside it, which images may not show everywhere. The
ground is white, also where a reader's browser is dark.
"""

import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from diagrams import ROOT, Diagram, find_diagrams
from playwright.sync_api import Page, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_SETTINGS = {
    "startOnLoad": False,
    "theme": "neutral",
    "htmlLabels": False,
    "flowchart": {"htmlLabels": False},
    "deterministicIds": True,
    "fontFamily": "Helvetica, Arial, sans-serif",
}
_DRAW = """async ([name, source, settings]) => {
    mermaid.initialize(settings);
    return (await mermaid.render(name, source)).svg;
}"""


def draw(mermaid: Path, pages: Sequence[Path]) -> None:
    """Draw what is not drawn yet, and delete pictures that no page has any more."""
    wanted = [it for page in pages for it in find_diagrams(page.read_text(encoding="utf-8"), page.name)]
    missing = [diagram for diagram in wanted if not diagram.is_drawn()]
    with sync_playwright() as playwright:
        program = os.environ.get("LAYERTAP_BROWSER") or next(filter(None, map(shutil.which, _NAMES)))
        # Its sandbox needs rights that containers do not give; the pages here are our own.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page()
        page.add_script_tag(path=str(mermaid))
        for diagram in missing:
            _draw_one(page, diagram)
        browser.close()
    kept = {ROOT / diagram.path for diagram in wanted}
    for old in {*(ROOT / "docs" / "diagrams").glob("*.svg")} - kept:
        old.unlink()


def _draw_one(page: Page, diagram: Diagram) -> None:
    path = ROOT / diagram.path
    svg = page.evaluate(_DRAW, [path.stem, diagram.source, _SETTINGS])
    head, rest = svg.split(">", 1)
    width = re.search(r"max-width: ([\d.]+)px", head)
    assert width, head
    head = head.replace('width="100%"', f'width="{width.group(1)}"').replace(width.group(0), "background-color: white")
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"{head}>{diagram.mark}{rest}\n", encoding="utf-8")
    print(f"drew {diagram.path}")


if __name__ == "__main__":
    draw(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
