"""End a Layertap process: errors give a message and a status, signals give an orderly stop.

Ctrl-C or SIGTERM (which a cloud sends before it takes the machine away) interrupts once: the
process finishes the current write, and uploads what is committed here. A second signal ends the
process at once. That loses nothing that is committed, because a run survives SIGKILL.

After SIGTERM the process always ends within `GRACE_SECONDS`. A signal handler alone cannot
guarantee that: Python runs it between two bytecodes of the main thread, which may be compiling a
model or waiting for a bucket that does not answer. But the interpreter writes the signal's number
to a pipe at once. A separate thread reads it there and counts the seconds.

Two events of a terminal are not errors. Characters that it cannot show (in a Latin-1 or ASCII
locale) become `?`. If the reader leaves early (`layertap inspect ... | head`), the process ends
silently, with the status of a program that SIGPIPE ended. SIGPIPE itself stays ignored, as Python
sets it: its default would also kill a run whose bucket closes a connection. So a broken pipe counts
as an early reader only if the pipe of standard output or standard error really has no reader any
more. Any other broken pipe is a bug and keeps its traceback. A broken pipe does not stop an
interruption either: a worker whose engine was killed writes its last words into one.
"""

import io
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TextIO

from layertap.errors import LayertapError

INTERRUPTED = 130
"""The exit status of a process that was interrupted and can be resumed."""
NOBODY_READS = 141
"""The exit status of a process whose reader has left: 128 + SIGPIPE, as in a shell."""
GRACE_SECONDS = 15.0

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run_guarded(run: Callable[[], int]) -> int:
    """Call `run` and return its status; on an error, print its message and return its exit status.

    After an interruption the process ends here.
    """
    _open_closed_streams()
    _replace_undisplayable(sys.stdout)
    try:
        with interruptible():
            return _run_and_flush(run)
    except LayertapError as error:
        with suppress(BrokenPipeError):  # nobody reads it any more
            print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:
        closed = [stream for stream in (sys.stdout, sys.stderr) if _has_no_reader(stream)]
        if not closed:
            raise
        for stream in closed:
            _discard(stream)
        return NOBODY_READS
    except KeyboardInterrupt:
        # An orderly exit would wait for the step on the device: most of a minute on a CPU.
        with suppress(BrokenPipeError):  # nobody reads it any more
            sys.stdout.flush()
        os._exit(INTERRUPTED)


def _run_and_flush(run: Callable[[], int]) -> int:
    """Call `run`, then flush: a buffer that fails while Python exits would print a traceback.

    It also flushes if `run` exits, as after `--help`.
    """
    try:
        status = run()
    except SystemExit:
        sys.stdout.flush()
        raise
    sys.stdout.flush()
    return status


def _open_closed_streams() -> None:
    """Connect standard streams that were closed before Python began (`>&-`) to the null device.

    Libraries write to them without checking, and the next opened file would get their number.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: the closed one
            setattr(sys, name, open(nowhere, mode, closefd=False))  # noqa: SIM115 - stays open with the process


def _replace_undisplayable(stream: TextIO) -> None:
    # In the C locale Python accepts undecodable file names (`surrogateescape`) but no other text.
    fails = ("strict",) if stream.encoding == "utf-8" else ("strict", "surrogateescape")
    if isinstance(stream, io.TextIOWrapper) and stream.errors in fails:
        stream.reconfigure(errors="replace")


def _has_no_reader(stream: TextIO) -> bool:
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):  # captured by a test, or closed
        return False
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


def _discard(stream: TextIO) -> None:
    """Discard what is still in the buffer."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


@contextmanager
def interruptible(grace: float = GRACE_SECONDS) -> Iterator[None]:
    """Raise KeyboardInterrupt in the block on the first signal; use it in the main thread."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        for number in _SIGNALS:
            signal.signal(number, lambda *_: os._exit(INTERRUPTED))
        _say(b"interrupted; finishing the current write first (interrupt again to stop at once)\n")
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
            _say(b"time is up; stopping now; committed output is safe\n")
            os._exit(INTERRUPTED)


def _say(words: bytes) -> None:
    """Write to standard error, without Python's buffers and locks."""
    with suppress(OSError):
        os.write(2, words)
