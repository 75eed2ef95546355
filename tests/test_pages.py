"""Rules for every page of the documentation."""

from pathlib import Path

import pytest
from commands import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
_LONGEST_LINE = 100
_LONGEST_CELL = 300


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_prose_is_wrapped_and_no_cell_of_a_table_is_a_paragraph(page: Path) -> None:
    fenced = False
    wrong = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fenced ^= line.lstrip().startswith("```")
        if line.startswith("|"):
            long = max(map(len, line.split("|"))) > _LONGEST_CELL
        else:
            long = not fenced and not line.startswith("    ") and len(line) > _LONGEST_LINE
        wrong += [number] * long
    assert not wrong, f"{page.name}: lines {wrong}"
