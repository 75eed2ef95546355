"""Values that several threads share, each read once and kept.

The first thread that asks for a key reads its value; other threads that ask for the same key wait.
Each key has its own lock, so a slow read of one value does not delay a thread that wants another.
If a read fails, the next thread that asks tries again.
"""

import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Once(Generic[K, V]):
    """Kept values by key."""

    def __init__(self) -> None:
        self.first: K | None = None
        """The key whose value was read first."""
        self._values: dict[K, V] = {}
        self._locks: dict[K, threading.Lock] = {}
        self._lock = threading.Lock()  # for the table of locks; never held while a value is read

    def get(self, key: K, read: Callable[[], V]) -> V:
        """Return the value of `key`. Call `read` if nobody has yet; raises what `read` raises."""
        if key not in self._values:
            with self._lock:
                own = self._locks.setdefault(key, threading.Lock())
            with own:
                if key not in self._values:
                    self._values[key] = read()
                    self.first = key if self.first is None else self.first
        return self._values[key]
