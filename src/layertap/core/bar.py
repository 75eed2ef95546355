"""A bar on the terminal, for every command that draws one."""

from tqdm import tqdm


class Bar(tqdm):  # type: ignore[misc]  # ships without types
    """tqdm's, without its thread that redraws seldom updated bars: it never ends, and ours are drawn often."""

    monitor_interval = 0
