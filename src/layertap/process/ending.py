"""How a process of Layertap ends: our errors become a message and an exit status.

Two things of a terminal are no errors. Characters that it cannot show (a Latin-1 or ASCII locale)
come out as `?`. A reader that leaves early (`layertap inspect ... | head`) ends the process in
silence, with the status that a shell gives to a program that SIGPIPE ended. SIGPIPE itself stays
ignored, as Python has it: its default would also kill a run whose bucket closes a connection. So a
broken pipe counts as an early reader only where the pipe of standard output or standard error has
in fact no reader any more; any other one is a bug and keeps its traceback.
"""

import io
import os
import select
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

from layertap.errors import LayertapError
from layertap.process.interruption import INTERRUPTED, interruptible

NOBODY_READS = 141
"""The exit status of a process whose reader has left: 128 + SIGPIPE, as in a shell."""


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
        # An orderly exit would wait for the step that is on the device, for most of a minute on a
        # CPU.
        with suppress(BrokenPipeError):  # nobody reads it any more
            sys.stdout.flush()
        os._exit(INTERRUPTED)


def _printed(run: Callable[[], int]) -> int:
    """The same once all output is out: a buffer that fails as Python exits gives a traceback.

    So too where it exits, as it does after `--help`.
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
    # In the C locale Python lets undecodable file names pass (`surrogateescape`), and nothing else
    # beyond ASCII.
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
