"""Threads beside the main one: one prepares the next window, one encodes shards, one writes them.

Each exception comes out in its place: the reader's comes out instead of its window, the others' at
the next `submit` or at `finish`. The queues are short on purpose: memory holds at most two windows
of token ids, and one shard being encoded and one being written beside the one that fills.

If the device is the CPU itself, the threads that encode and write are `gentle`: they use the cores
that the forward pass leaves idle. All threads of a matrix product wait for its slowest, so a writer
that shares one core stops them all: 8 s of writing made a run 12 s longer, gently 8 s
(docs/LOG.md). We do not use the lowest priority: after SIGTERM or Ctrl-C, a commit that has begun
must finish while dispatched steps keep the cores busy.
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
"""The priority of a gentle writer: idle time, and a tenth of a usual thread's share."""


@contextmanager
def read_ahead(items: Iterator[T]) -> Iterator[Iterator[T]]:
    """The same items. A thread makes each while the one before is in use; the first at once.

    When the block ends, maybe before the last item, the thread finishes its current item and ends.
    Nobody waits for that: the item may hang on a network, and Ctrl-C may have ended the block.
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
    """A mark that follows the last item."""


_FINISHED = _Finished()


class BackgroundQueue:
    """Runs calls one after another in a thread; at most `waiting` of them wait.

    A call that fails is the last that runs: later calls may depend on it. If an exception ends the
    block, queued calls still run, because their work is already done.
    """

    def __init__(self, waiting: int = 1, *, gentle: bool = False, name: str = "writer") -> None:
        begin = _give_way if gentle else None
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name, initializer=begin)
        self._calls: deque[Future[None]] = deque()
        self._most = waiting + 1
        self._broken = False

    def submit(self, call: Callable[[], None]) -> None:
        """Wait for room, then queue `call`; raises an earlier call's error instead."""
        while len(self._calls) >= self._most or (self._calls and self._calls[0].done()):
            self._calls.popleft().result()
        self._calls.append(self._pool.submit(self._run, call))

    def finish(self) -> None:
        """Wait for every call; raises the error of one that failed."""
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
    """Lower the priority of this thread and of those it starts; works only on Linux."""
    if sys.platform == "linux":
        with suppress(OSError):  # a sandbox may forbid it; then priorities stay equal
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
