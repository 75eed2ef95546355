"""A bar on the terminal, for every command that draws one."""

from tqdm import tqdm


class Bar(tqdm):  # type: ignore[misc]  # ships without types
    """tqdm's bar without the thread that redraws slow bars: that thread never ends."""

    monitor_interval = 0
