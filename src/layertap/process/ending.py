"""How a process of Layertap ends: on errors with a message and a status, on signals in order.

Ctrl-C, and SIGTERM, by which a cloud says that it takes the machine away, interrupt once: what is
being written is finished, and what is committed here is uploaded. A second signal ends the process
at once; that loses nothing which is committed, since a run withstands SIGKILL.

After SIGTERM the process is gone within `GRACE_SECONDS` in any case. A signal handler alone could
not promise that: Python runs it between two bytecodes of the main thread, which may be compiling a
model, or waiting for a bucket that does not answer. So a thread of its own reads the signal's
number from the pipe into which the interpreter writes it at once, and counts the seconds.

Two things of a terminal are no errors. Characters that it cannot show (a Latin-1 or ASCII locale)
come out as `?`. A reader that leaves early (`layertap inspect ... | head`) ends the process in
silence, with the status that a shell gives to a program that SIGPIPE ended. SIGPIPE itself stays
ignored, as Python has it: its default would also kill a run whose bucket closes a connection. So a
broken pipe counts as an early reader only where the pipe of standard output or standard error has
in fact no reader any more; any other one is a bug and keeps its traceback. An interruption is not
stopped by it either: a worker whose engine was killed writes its last words into a broken pipe.
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
"""The exit status of a process that was interrupted in a state which can be resumed."""
NOBODY_READS = 141
"""The exit status of a process whose reader has left: 128 + SIGPIPE, as in a shell."""
GRACE_SECONDS = 15.0

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def guarded(run: Callable[[], int]) -> int:
    """What `run` returns, or the exit status of the error that it raised, after its message.

    After an interruption the process ends here.
    """
    _open_what_is_closed()
    _replace_what_cannot_be_shown(sys.stdout)
    try:
        with interruptible():
            return _printed(run)
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
        # An orderly exit would wait for the step on the device, for most of a minute on a CPU.
        with suppress(BrokenPipeError):  # nobody reads it any more
            sys.stdout.flush()
        os._exit(INTERRUPTED)


def _printed(run: Callable[[], int]) -> int:
    """The same once all output is out: a buffer that fails as Python exits gives a traceback.

    The same holds where it exits, as it does after `--help`.
    """
    try:
        status = run()
    except SystemExit:
        sys.stdout.flush()
        raise
    sys.stdout.flush()
    return status


def _open_what_is_closed() -> None:
    """Let standard streams that were closed before Python began (`>&-`) lead nowhere.

    Libraries write to them without a look, and the next file that is opened would get their number.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: the one that was closed
            setattr(sys, name, open(nowhere, mode, closefd=False))  # noqa: SIM115 - as long as the process


def _replace_what_cannot_be_shown(stream: TextIO) -> None:
    # In the C locale Python lets undecodable file names pass (`surrogateescape`) but no other text.
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
    """Let what is still in the buffer go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


@contextmanager
def interruptible(grace: float = GRACE_SECONDS) -> Iterator[None]:
    """Raise KeyboardInterrupt in the block on the first signal; for the main thread."""

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
