"""The tutorials of docs/tutorials are the scripts of examples/ as they are now."""

import sys

import pytest
from commands import ROOT
from pages import blocks

sys.path.insert(0, str(ROOT / "docs" / "site"))

from tutorials import FOLDER, TUTORIALS, cells


@pytest.mark.parametrize("name", TUTORIALS)
def test_a_tutorial_has_the_cells_of_its_script(name: str) -> None:
    page = FOLDER / f"{name}.md"
    shown = [block.text for block in blocks(page) if block.language == "python"]
    assert shown == [cell.text for cell in cells(name) if cell.is_code], f"make tutorials TUTORIALS={name}"
    text = page.read_text(encoding="utf-8")
    assert not [cell.text for cell in cells(name)[1:] if not cell.is_code and cell.text not in text]


def test_every_tutorial_shows_what_its_script_printed() -> None:
    assert {path.stem for path in FOLDER.glob("*.md")} == {*TUTORIALS}
    for path in FOLDER.glob("*.md"):
        assert [block for block in blocks(path) if not block.language], path.name
