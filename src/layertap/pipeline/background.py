"""Threads beside the main one: one prepares the next window, one encodes shards, one writes them.

All hand their exceptions on in place: what the reader raises comes out where its window would
have, what the others raise at the next `submit` or at `finish`. The queues are short on purpose: at
most two windows of token ids, one shard that is encoded and one that is written are held in memory
beside the one that fills.

Where the device is the CPU itself, whoever encodes and writes is `gentle`: it takes the cores that
the forward pass leaves idle. All threads of a matrix product wait for its slowest, so a writer that
takes one core in turns stops them all: 8 s of writing made a run longer by 12 s, gently by 8 s
(docs/LOG.md). Not the lowest priority of all, since a commit that has begun is finished after
SIGTERM and Ctrl-C, while steps that were dispatched keep the cores busy.
"""

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TypeVar

T = TypeVar("T")

NICE = 10
"""The priority of a gentle writer: a tenth of the share of a usual thread, and the gaps."""


@contextmanager
def read_ahead(items: Iterator[T]) -> Iterator[Iterator[T]]:
    """The same items, each made by a thread while the one before is in use, the first at once.

    When the block ends, which may be before the last item, the thread finishes the one that it is
    making, and ends. Nobody waits for that: the item may hang on a network, and the block may have
    ended by Ctrl-C.
    """
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead")
    try:
        yield _drain(pool, items, pool.submit(next, items, _FINISHED))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _drain(pool: ThreadPoolExecutor, items: Iterator[T], upcoming: "Future[T | _Finished]") -> Iterator[T]:
    while not isinstance(item := upcoming.result(), _Finished):
        upcoming = pool.submit(next, items, _FINISHED)
        yield item


class _Finished:
    """What comes after the last item."""


_FINISHED = _Finished()


class BackgroundQueue:
    """Runs calls one after another in a thread; at most `waiting` of them wait.

    A call that fails is the last one that runs: those behind it may build upon it. On leaving the
    block after an exception, calls that were queued are still run: they are work that was done.
    """

    def __init__(self, waiting: int = 1, *, gentle: bool = False, name: str = "writer") -> None:
        begin = _give_way if gentle else None
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name, initializer=begin)
        self._calls: deque[Future[None]] = deque()
        self._most = waiting + 1
        self._broken = False

    def submit(self, call: Callable[[], None]) -> None:
        """Wait for room, then queue `call`; raises what an earlier call raised instead."""
        while len(self._calls) >= self._most or (self._calls and self._calls[0].done()):
            self._calls.popleft().result()
        self._calls.append(self._pool.submit(self._run, call))

    def finish(self) -> None:
        """Wait for every call; raises what one of them raised."""
        while self._calls:
            self._calls.popleft().result()

    def _run(self, call: Callable[[], None]) -> None:
        if not self._broken:
            self._broken = True
            call()
            self._broken = False

    def __enter__(self) -> "BackgroundQueue":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True)


def _give_way() -> None:
    """Lower the priority of this thread and those that it starts; only Linux can."""
    if sys.platform == "linux":
        with suppress(OSError):  # a sandbox may forbid it; then they take turns as before
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
