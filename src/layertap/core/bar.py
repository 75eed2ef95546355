"""The progress bars of commands, programs and notebooks.  In a program, a bar appears only if a
person may see it, on a terminal or in a notebook, and only after two seconds, so that short work
leaves a notebook clean. In a notebook it is a widget if ipywidgets is installed, otherwise a line
of text.
"""

import sys
from importlib.util import find_spec
from typing import Any

from tqdm import tqdm

_SECONDS_BEFORE = 2.0


class Bar(tqdm):  # type: ignore[misc]  # ships without types
    """tqdm's bar without the thread that redraws slow bars, because that thread never ends."""

    monitor_interval = 0


def open_bar(
    unit: str, total: int | None, wanted: bool | None = None, *, initial: int = 0, delay: float = _SECONDS_BEFORE
) -> Any:  # noqa: ANN401 - tqdm's
    """Open a bar that counts `unit` from `initial` up to `total` (None: unknown).

    It appears after `delay` seconds. `wanted` shows or hides it; None shows it if a person may see
    it.
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
    """Return whether this code runs in a notebook."""
    shell = sys.modules.get("IPython")
    running = shell.get_ipython() if shell is not None else None
    return running is not None and "IPKernelApp" in getattr(running, "config", {})
