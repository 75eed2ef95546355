"""The pages that are generated from the code match the code."""

import sys
from pathlib import Path

import pytest
from commands import ROOT

sys.path.insert(0, str(ROOT / "docs" / "site"))

from reference import PAGES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_is_as_new_as_the_code(page: Path) -> None:
    assert page.read_text(encoding="utf-8").rstrip() == PAGES[page]().rstrip(), f"{page.name} is old: make reference"
