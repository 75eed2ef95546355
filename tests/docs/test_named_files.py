"""Files that a page names in code exist."""

import re
from pathlib import Path

import pytest
from commands import ROOT

_PAGES = [
    ROOT / "CONTRIBUTING.md",
    *(ROOT / "docs" / name for name in ("architecture.md", "extending.md", "numerics.md")),
]
_PATH = re.compile(r"`((?:[\w.-]+/)*[\w-]+(?:\.py|\.sh|\.yml|/))`")
_THERE = [
    path.relative_to(ROOT).as_posix() + "/" * path.is_dir()
    for top in ("src", "tests", "benchmarks", "docs", "examples", "scripts", ".github")
    for path in [ROOT / top, *(ROOT / top).rglob("*")]
]


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.name)
def test_named_files_exist(page: Path) -> None:
    """By their path from the root, or by the end of it: `shards/encode.py`."""
    named = set(_PATH.findall(page.read_text(encoding="utf-8")))
    assert named
    assert {name for name in named if not any(f"/{path}".endswith(f"/{name}") for path in _THERE)} == set()
