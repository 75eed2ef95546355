"""Threads whose work may be left at any moment, and which hold up neither the one who leaves nor
Python's exit.

They are daemons, and not an executor's threads: at exit, Python waits for an executor to work off
what was queued, and its ways to stop earlier are gone by the time that a forgotten iterator is
destroyed. `dismiss` needs nothing but an attribute, a `SimpleQueue` and the threads, and waits for
them 5 s at most. It may run in any thread, within the garbage collector or at exit. It takes no
lock that its caller might hold already.

A call that has begun is not interrupted. Calls that have not begun are cancelled.
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
"""Seconds to wait for all threads to end their last calls. A bound, since storage may hang, and
since the garbage collector may run `dismiss` in a thread that holds a lock which such a call
needs."""


class Workers:
    """`count` threads that run calls in the order in which these were submitted."""

    def __init__(self, count: int, name: str, at_end: Callable[[], object] | None = None) -> None:
        """Each thread calls `at_end` when it ends."""
        self.dismissed = False
        self._at_end = at_end
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._threads = [threading.Thread(target=self._work, name=f"{name}-{n}", daemon=True) for n in range(count)]
        for thread in self._threads:
            thread.start()

    def submit(self, call: Callable[[], T]) -> "Future[T]":
        """Have `call` run; raises CancelledError where the workers are dismissed."""
        if self.dismissed:
            raise CancelledError
        result: Future[T] = Future()
        self._calls.put((result, call))
        if self.dismissed:  # meanwhile: the threads may have left before they saw it
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
            del result, call  # or what the last call made would live until the next one comes
        if self._at_end is not None:
            self._at_end()


def _run(call: Callable[[], T], result: "Future[T]") -> None:
    try:
        value = call()
    except BaseException as error:  # noqa: BLE001 - handed on to whoever asks for the result
        result.set_exception(error)
    else:
        result.set_result(value)


def dismiss(teams: Sequence[Workers]) -> None:
    """Let these threads end, after the calls that they have begun, and wait for them."""
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
    """The same items, each made by a thread while the one before is used.

    The threads, and those of `teams` that make the items, are dismissed at the end of the items, at
    an error, by `close`, and in any case when the iterator is destroyed or Python exits. So `items`
    must not lead back to it.
    """

    def __init__(self, items: Iterator[T], teams: Sequence[Workers], name: str) -> None:
        # The thread that makes the items closes them: a generator that is left to Python's exit
        # would clean up among modules that are empty already.
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
