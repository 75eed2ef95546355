"""Tutorials: pages that are scripts of `examples/`, cell by cell, with what each cell printed.

    python docs/site/tutorials.py first_extraction chat_data ...      # minutes; make tutorials

A script is run whole, in an empty folder, as `python examples/NAME.py` would run it. What it prints
goes below its cell, and pictures that it saves go there too. Progress bars and messages on stderr
are left out. The page is kept, because the runs take minutes: `tests/examples/test_tutorials.py`
fails where a script has changed since.
"""

import contextlib
import io
import os
import platform
import posixpath
import re
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "tutorials"
TUTORIALS = ("first_extraction", "train_jax", "chat_data", "arc_features")
_MARK = re.compile(r"^# %%( \[markdown\])?$", re.MULTILINE)


@dataclass
class Cell:
    """One cell of a script: text, or code with what came of it."""

    text: str
    is_code: bool
    printed: str = ""
    pictures: list[str] = field(default_factory=list)


def cells(name: str) -> list[Cell]:
    """The cells of a script; text comes without the signs of comments."""
    parts = _MARK.split((ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8"))[1:]
    found = zip(parts[0::2], parts[1::2], strict=True)
    return [Cell(body.strip() if mark is None else _prose(body), is_code=mark is None) for mark, body in found]


def page(name: str, found: Sequence[Cell], where: str) -> str:
    """The page of a script that was run."""
    title, *rest = found
    heading, _, opening = title.text.partition("\n")
    about = (
        f"This page is [examples/{name}.py](../../examples/{name}.py), run whole {where}. Below each cell is what it"
        " printed. The script is a notebook, too ([how to open it](../../examples/README.md))."
    )
    return "\n\n".join([heading, opening.strip(), _wrap(about), *_blocks(rest)]) + "\n"


def _blocks(found: Sequence[Cell]) -> Iterator[str]:
    for cell in found:
        if not cell.is_code:
            yield cell.text
            continue
        yield f"```python\n{cell.text}\n```"
        if cell.printed.strip():
            yield f"```\n{cell.printed.rstrip()}\n```"
        yield from (f"![What the cell above drew]({picture})" for picture in cell.pictures)


def record(name: str) -> None:
    """Run a script and write its page."""
    found = cells(name)
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        _run(name, found, Path(scratch))
    day = datetime.now(UTC).date().isoformat()
    text = page(name, found, f"on {day}, on {os.cpu_count()} cores of {platform.machine()} beside other work")
    (FOLDER / f"{name}.md").write_text(text, encoding="utf-8")


def _run(name: str, found: Sequence[Cell], folder: Path) -> None:
    """Run the cells one after the other in a module, as Python runs a script."""
    script = ROOT / "examples" / f"{name}.py"
    sys.argv = [str(script)]
    sys.path.insert(0, str(script.parent))
    module = sys.modules["__main__"] = ModuleType("__main__")
    module.__file__ = str(script)
    shown: dict[Path, float] = {}
    for number, cell in enumerate(found):
        if cell.is_code:
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compile(cell.text, f"{script}, cell {number}", "exec"), vars(module))  # our own script
            cell.printed = printed.getvalue()
            cell.pictures = [_keep(name, path) for path in _new_pictures(folder, shown)]


def _new_pictures(folder: Path, shown: dict[Path, float]) -> list[Path]:
    now = {path: path.stat().st_mtime for path in sorted(folder.glob("*.png"))}
    new = [path for path, time in now.items() if shown.get(path) != time]
    shown |= now
    return new


def _keep(name: str, picture: Path) -> str:
    FOLDER.mkdir(exist_ok=True)
    kept = f"{name}-{picture.name}"
    shutil.copyfile(picture, FOLDER / kept)
    return kept


def _prose(body: str) -> str:
    """The text of a cell, with its links as seen from the page's folder."""
    lines = "\n".join(line.removeprefix("#").removeprefix(" ") for line in body.strip().splitlines())
    linked = re.sub(r"\]\((?!https?:|#)([^)]+)\)", lambda it: f"]({_seen_from_here(it.group(1))})", lines)
    return "\n\n".join(_wrap(it) if max(map(len, it.splitlines())) > 100 else it for it in linked.split("\n\n"))


def _seen_from_here(link: str) -> str:
    stem, _, ending = link.rpartition(".")
    return f"{stem}.md" if stem in TUTORIALS and ending == "py" else posixpath.normpath(f"../../examples/{link}")


def _wrap(paragraph: str) -> str:
    return textwrap.fill(paragraph, 100, break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    for wanted in sys.argv[1:] or TUTORIALS:
        FOLDER.mkdir(exist_ok=True)
        record(wanted)
