"""Bars for programs and notebooks: shown on a terminal and in a notebook, and nowhere else.

A bar comes only when the work has taken two seconds, so that short readings leave a notebook clean.
In a notebook it is a widget where ipywidgets is installed, else a line of text.
"""

import sys
from importlib.util import find_spec
from typing import Any

from layertap.core.bar import Bar

_SECONDS_BEFORE = 2.0


def in_notebook() -> bool:
    """Whether this is a cell of a notebook."""
    shell = sys.modules.get("IPython")
    running = shell.get_ipython() if shell is not None else None
    return running is not None and "IPKernelApp" in getattr(running, "config", {})


def open_bar(unit: str, total: int | None, wanted: bool | None) -> Any:  # noqa: ANN401 - tqdm's, which is untyped
    """A bar that counts `unit`; `wanted` None: where a person may see it."""
    notebook = in_notebook()
    shown = wanted if wanted is not None else notebook or sys.stderr.isatty()
    settings: dict[str, Any] = {"unit": f" {unit}", "total": total, "leave": False, "disable": not shown}
    if notebook and find_spec("ipywidgets") is not None:
        from tqdm.notebook import tqdm as widget

        return widget(delay=_SECONDS_BEFORE, **settings)
    return Bar(delay=_SECONDS_BEFORE, dynamic_ncols=True, **settings)
