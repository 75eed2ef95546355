"""Ctrl-C, and SIGTERM, which is how a cloud says that it takes the machine away.

Either interrupts once: what is being written is finished, what is committed here is uploaded.
Either one again ends the process at once; that loses nothing which is committed, since a run
withstands SIGKILL.

After SIGTERM the process is gone within `GRACE_SECONDS` in any case. A signal handler alone could
not promise that: Python runs it between two bytecodes of the main thread, which may be compiling a
model, or waiting for a bucket that does not answer. So a thread of its own reads the signal's
number from the pipe into which the interpreter writes it at once, and counts the seconds.

What is said on the way may find no reader any more (a worker whose engine was killed writes into a
broken pipe). That must not take the place of the interruption, so such failures are passed over.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

INTERRUPTED = 130
"""The exit status of a process that was interrupted in a state which can be resumed."""
GRACE_SECONDS = 15.0

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def interruptible(grace: float = GRACE_SECONDS) -> Iterator[None]:
    """Raise KeyboardInterrupt in the block on the first signal; see above. For the main thread."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        for number in _SIGNALS:
            signal.signal(number, lambda *_: os._exit(INTERRUPTED))
        _say(b"interrupted; what is being written is finished first (once more: stop at once)\n")
        raise KeyboardInterrupt

    with _deadline_after_sigterm(grace):
        before = {number: signal.signal(number, interrupt) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def _deadline_after_sigterm(grace: float) -> Iterator[None]:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    closing = threading.Event()
    watcher = threading.Thread(target=_watch, args=(reading, grace, closing), name="preemption", daemon=True)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        closing.set()
        os.close(writing)
        watcher.join()
        os.close(reading)


def _watch(reading: int, grace: float, closing: threading.Event) -> None:
    while numbers := os.read(reading, 64):
        if signal.SIGTERM in numbers and not closing.wait(grace):
            _say(b"time is up; what is committed is safe\n")
            os._exit(INTERRUPTED)


def _say(words: bytes) -> None:
    """Write to standard error, past Python's buffers and locks."""
    with suppress(OSError):
        os.write(2, words)
