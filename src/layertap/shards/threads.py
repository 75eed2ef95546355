"""Threads that encode: how many there are, and how their results come in order.

A shard's bytes must not depend on how many threads made them. So the samples alone decide how work
is cut (some samples at a tap, a mebibyte to compress), and results are taken in the order of the
work. The queue is bounded: at most two pieces for each thread are started and not yet taken.

These are threads, not processes: numpy, isal and crc32c let other threads run meanwhile, and no
value has to be copied. The threads belong to the encoder of a shard and end with it. So the
threads of a writer with low priority have a low priority, too (pipeline/background.py).
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
"""More threads would wait for the interpreter, and for the thread that orders their results."""


def usable_cores() -> int:
    """Return how many cores this process may use, at most 32."""
    affinity = getattr(os, "sched_getaffinity", None)  # only Linux has it
    return min(MOST_THREADS, len(affinity(0)) if affinity else os.cpu_count() or 1)


class Threads:
    """Threads that work ahead of the caller that takes their results."""

    def __init__(self, pool: ThreadPoolExecutor, count: int) -> None:
        self.pool = pool
        self.ahead = _AHEAD * count

    def map(self, call: Callable[[Item], Result], items: Iterable[Item]) -> Generator[Result, None, None]:
        """Yield the result of each call, in the order of the items.

        If a call raised an error, this raises it in the place of its result.
        """
        with closing(InOrder(self, call)) as begun:
            for item in items:
                yield from begun.begin(item)
            yield from begun.rest()


class InOrder(Generic[Item, Result]):
    """Calls that threads run. Their results are taken in the order in which the calls began."""

    def __init__(self, threads: Threads, call: Callable[[Item], Result]) -> None:
        self._threads = threads
        self._call = call
        self._begun: deque[Future[Result]] = deque()

    def begin(self, item: Item) -> Iterator[Result]:
        """Begin another call. If too many results wait, yield the oldest one first."""
        if len(self._begun) >= self._threads.ahead:
            yield self._begun.popleft().result()
        self._begun.append(self._threads.pool.submit(self._call, item))

    def rest(self) -> Iterator[Result]:
        """Yield the results of all calls that began."""
        while self._begun:
            yield self._begun.popleft().result()

    def close(self) -> None:
        """Drop the calls whose results were not taken."""
        while self._begun:
            self._begun.popleft().cancel()


@contextmanager
def working(count: int | None = None) -> Iterator[Threads]:
    """Run so many threads, or one for each usable core, until the block ends.

    The end of the block waits for calls that are still running.
    """
    count = count or usable_cores()
    with ThreadPoolExecutor(count, thread_name_prefix="encode") as pool:
        yield Threads(pool, count)
