"""Threads that encode: how many, and how their results come in order.

A shard's bytes must not depend on how many threads made them. So work is cut by the samples alone
(some samples at a tap, a mebibyte to compress), and results are taken in the order of the work.
What waits is bounded: at most two pieces for each thread are begun and not yet taken.

Threads and no processes: numpy, isal and the checksum let other threads run meanwhile, and values
need not be copied. The threads belong to whoever encodes a shard, so those of a gentle writer are
gentle too (pipeline/background.py), and end with it.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 2
MOST_THREADS = 32
"""More would wait for the interpreter, and for the one that puts their results in order."""


def usable_cores() -> int:
    """How many cores this process may use, at most 32."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux has it
    return min(MOST_THREADS, len(affinity(0)) if affinity else os.cpu_count() or 1)


class Threads:
    """Some threads that work ahead of whoever takes their results."""

    def __init__(self, pool: ThreadPoolExecutor, count: int) -> None:
        self.pool = pool
        self.ahead = _AHEAD * count

    def map(self, call: Callable[[Item], Result], items: Iterable[Item]) -> Generator[Result, None, None]:
        """The result of each call, in the order of the items; raises in its place what a call
        raised.
        """
        with closing(InOrder(self, call)) as begun:
            for item in items:
                yield from begun.begin(item)
            yield from begun.rest()


class InOrder(Generic[Item, Result]):
    """Calls that threads run, and whose results are taken in the order in which they were begun."""

    def __init__(self, threads: Threads, call: Callable[[Item], Result]) -> None:
        self._threads = threads
        self._call = call
        self._begun: deque[Future[Result]] = deque()

    def begin(self, item: Item) -> Iterator[Result]:
        """Begin another call; the result that has to be taken first, if too many wait."""
        if len(self._begun) >= self._threads.ahead:
            yield self._begun.popleft().result()
        self._begun.append(self._threads.pool.submit(self._call, item))

    def rest(self) -> Iterator[Result]:
        """The results of all that were begun."""
        while self._begun:
            yield self._begun.popleft().result()

    def close(self) -> None:
        """Drop what was not taken."""
        while self._begun:
            self._begun.popleft().cancel()


@contextmanager
def working(count: int | None = None) -> Iterator[Threads]:
    """That many threads, or one for each usable core, until the block ends.

    It then waits for the calls that are running.
    """
    count = count or usable_cores()
    with ThreadPoolExecutor(count, thread_name_prefix="encode") as pool:
        yield Threads(pool, count)
