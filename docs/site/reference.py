"""Write the pages that are made of the code: `make reference`.

They are kept in the repository, so that a code host shows them; `tests/docs/test_reference.py`
fails where they are older than the code.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from commands_page import commands_page
from python_page import python_page

_DOCS = Path(__file__).resolve().parents[1]
PAGES: Mapping[Path, Callable[[], str]] = {_DOCS / "commands.md": commands_page, _DOCS / "api.md": python_page}

if __name__ == "__main__":
    for path, make in PAGES.items():
        path.write_text(make().rstrip() + "\n", encoding="utf-8")
        print(f"wrote {path}")
