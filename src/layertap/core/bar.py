"""A bar on the terminal, for every command that draws one; and one for programs and notebooks.

In a program, a bar comes only where a person may see it, on a terminal or in a notebook, and only
when the work has taken two seconds: short work leaves a notebook clean. In a notebook it is a
widget where ipywidgets is installed, else a line of text.
"""

import sys
from importlib.util import find_spec
from typing import Any

from tqdm import tqdm

_SECONDS_BEFORE = 2.0


class Bar(tqdm):  # type: ignore[misc]  # ships without types
    """tqdm's bar without the thread that redraws slow bars: that thread never ends."""

    monitor_interval = 0


def open_bar(
    unit: str, total: int | None, wanted: bool | None = None, *, initial: int = 0, delay: float = _SECONDS_BEFORE
) -> Any:  # noqa: ANN401 - tqdm's
    """A bar that counts `unit` from `initial` on, of `total` where that is known.

    It is shown after a `delay` in seconds; where a person may see it, unless `wanted` says so.
    """
    notebook = in_notebook()
    shown = wanted if wanted is not None else notebook or sys.stderr.isatty()
    settings = {"unit": f" {unit}", "total": total, "leave": False, "disable": not shown, "delay": delay}
    settings["initial"] = initial
    if notebook and shown and find_spec("ipywidgets") is not None:
        from tqdm.notebook import tqdm as widget

        return type("NotebookBar", (widget,), {"monitor_interval": 0})(**settings)
    return Bar(dynamic_ncols=True, **settings)


def in_notebook() -> bool:
    """Whether this runs in a cell of a notebook."""
    shell = sys.modules.get("IPython")
    running = shell.get_ipython() if shell is not None else None
    return running is not None and "IPKernelApp" in getattr(running, "config", {})
