"""Threads that you can abandon at any moment, without delaying the caller or Python's exit.

They are daemons, not threads of an executor. At exit, Python waits until an executor has finished
its queue, and when a forgotten iterator is destroyed, it is too late to stop an executor. `dismiss`
needs only an attribute, a `SimpleQueue` and the threads, and waits for them at most 5 s. It may run
in any thread, inside the garbage collector or at exit. It takes no lock that its caller might hold.

A running call is not interrupted. Calls that have not started are cancelled.
"""

import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import ExitStack
from functools import partial
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_PATIENCE = 5.0
"""Seconds to wait until all threads have finished their last calls. It is bounded because storage
may hang, and because the garbage collector may run `dismiss` in a thread that holds a lock that
such a call needs."""


class Workers:
    """`count` threads that run calls in the order of submission."""

    def __init__(self, count: int, name: str, at_end: Callable[[], object] | None = None) -> None:
        """Each thread calls `at_end` when it ends."""
        self.dismissed = False
        self._at_end = at_end
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._threads = [threading.Thread(target=self._work, name=f"{name}-{n}", daemon=True) for n in range(count)]
        for thread in self._threads:
            thread.start()

    def submit(self, call: Callable[[], T]) -> "Future[T]":
        """Submit `call`; raises CancelledError if the workers are dismissed."""
        if self.dismissed:
            raise CancelledError
        result: Future[T] = Future()
        self._calls.put((result, call))
        if self.dismissed:  # in the meantime: the threads may have ended before they saw it
            result.cancel()
        return result

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            result, call = item
            del item
            if self.dismissed:
                result.cancel()
            elif result.set_running_or_notify_cancel():
                _run(call, result)
            del result, call  # otherwise the last result would live until the next call
        if self._at_end is not None:
            self._at_end()


def _run(call: Callable[[], T], result: "Future[T]") -> None:
    try:
        value = call()
    except BaseException as error:  # noqa: BLE001 - raised again for whoever asks for the result
        result.set_exception(error)
    else:
        result.set_result(value)


def dismiss(teams: Sequence[Workers]) -> None:
    """End these threads after their running calls, and wait for them."""
    for team in teams:
        team.dismissed = True
    for team in teams:
        for _ in team._threads:
            team._calls.put(None)
    until = time.monotonic() + _PATIENCE
    for team in teams:
        for thread in team._threads:
            if thread.ident != threading.get_ident():
                thread.join(max(0.0, until - time.monotonic()))


class Ahead(Generic[T]):
    """Iterates over `items`; a thread makes each item while you use the one before.

    The thread, and those of `teams` that make the items, are dismissed at the end of the items,
    after an error, by `close`, and always when the iterator is destroyed or Python exits. So
    `items` must not refer to this object.
    """

    def __init__(self, items: Iterator[T], teams: Sequence[Workers], name: str) -> None:
        # The thread that makes the items closes them: a generator that Python's exit destroys would
        # clean up when modules are already empty.
        maker = Workers(1, name, getattr(items, "close", None))
        self.close = weakref.finalize(self, dismiss, (maker, *teams))
        self._make: Callable[[], Future[T | None]] = partial(maker.submit, partial(next, items, None))
        self._coming = self._make()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        with ExitStack() as undo:
            undo.callback(self.close)
            item = self._coming.result()
            if item is None:
                raise StopIteration
            self._coming = self._make()
            undo.pop_all()
        return item
