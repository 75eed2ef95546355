"""Values that are read once and kept, when several threads ask for them.

The first thread that asks for a key reads its value, and the others that ask for that key wait for
it. Each key has a lock of its own: a slow read of one value holds up nobody who wants another.
Where a read fails, the next thread that asks tries again.
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
        """The key whose value was there first."""
        self._values: dict[K, V] = {}
        self._locks: dict[K, threading.Lock] = {}
        self._lock = threading.Lock()  # for the table of locks; never held while a value is read

    def get(self, key: K, read: Callable[[], V]) -> V:
        """The value of `key`, from `read` where nobody has read it yet; raises what that raises."""
        if key not in self._values:
            with self._lock:
                own = self._locks.setdefault(key, threading.Lock())
            with own:
                if key not in self._values:
                    self._values[key] = read()
                    self.first = key if self.first is None else self.first
        return self._values[key]
