"""Memory that a thread uses again in its next call.

The system fills each new page with zeros, and takes pages back, while other cores wait for it. That
costs 0.5 ns a byte on a virtual machine, more than most of what encoding does with the byte. When
each call made its own arrays, two cores were slower than one.
"""

import threading

import numpy as np


class Scratch(threading.local):
    """float32 memory, separate for each thread."""

    def __init__(self) -> None:
        self._values = np.empty(0, np.float32)

    def rows(self, width: int, *counts: int) -> list[np.ndarray]:
        """Return float32 arrays [count, width], valid until this thread asks again."""
        if self._values.size < sum(counts) * width:
            self._values = np.empty(sum(counts) * width, np.float32)
        ends = np.cumsum(counts)
        whole = self._values[: ends[-1] * width].reshape(-1, width)
        return np.split(whole, ends[:-1])
