"""A host's process under one that explains its death.

When a host is lost, JAX's runtime ends the others, after `HEARTBEAT_SECONDS`, by an abort deep in
C++: a stack trace in which the lost host is named somewhere. No Python code runs in that process
any more. So with `--multihost` the command runs itself as a child, lets its output through but for
such traces, and says in the end which host was lost and that the same command resumes. Signals are
handed on.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# A host that says nothing for so long is given up by the others.
HEARTBEAT_SECONDS = 20

_MARK = "LAYERTAP_SUPERVISED"
# How the coordination service (xla/tsl) names tasks that sent no heartbeat, and a coordinator that
# does not answer.
_LOST = re.compile(r"[Tt]ask[ :/]*(\d+) heartbeat timeout|unhealthy \(stopped sending heartbeats\):.*?(\d+)")
# The one that waits at the end is the one that ended first.
_ENDED = re.compile(r"The first task at the barrier: (\d+)")
_NO_COORDINATOR = re.compile(
    r"coordination service .*unavailable|Failed to send RPC to coordination service|leader", re.I
)
_TRACE = re.compile(r"F\d{4} .*\] Terminating process because|\*\*\* Check failure|    @ +0x")


def is_child() -> bool:
    """Whether this process is under a supervisor already."""
    return _MARK in os.environ


def supervise() -> int:
    """Run this command as a child; returns its exit status, or 1 where JAX's runtime ended it."""
    child = subprocess.Popen(
        [sys.executable, *sys.orig_argv[1:]], env={**os.environ, _MARK: "1"}, stderr=subprocess.PIPE, text=True
    )
    with child, _signals_handed_on(child):
        trace = _let_through(child)
        status = child.wait()
    if status >= 0:
        _say(trace)  # it was none
        return status
    _say(f"error: {_explain(status, trace)}\n")
    return 1


@contextmanager
def _signals_handed_on(child: "subprocess.Popen[str]") -> Iterator[None]:
    """Ctrl-C reaches the child by itself, where both share a terminal."""
    before = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: child.send_signal(signal.SIGTERM)),
        signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: _interrupt(child)),
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(child: "subprocess.Popen[str]") -> None:
    if not sys.stdin.isatty():
        child.send_signal(signal.SIGINT)


def _let_through(child: "subprocess.Popen[str]") -> str:
    """Copy the child's standard error to ours; hold back and return the trace of an abort."""
    held: list[str] = []
    assert child.stderr is not None
    for line in child.stderr:
        if held or _TRACE.match(line):
            held.append(line)
        else:
            _say(line)
    return "".join(held)


def _say(words: str) -> None:
    """Write to standard error. The child is not left alone if nobody reads that any more."""
    with suppress(OSError):
        sys.stderr.write(words)
        sys.stderr.flush()


def _explain(status: int, trace: str) -> str:
    again = "committed shards are safe; start the same command on every host again, and each goes on where it was"
    if found := _LOST.search(trace):
        return (
            f"host {found[1] or found[2]} was lost: no sign of it for {HEARTBEAT_SECONDS} s. This host stopped; {again}"
        )
    if found := _ENDED.search(trace):
        return f"host {found[1]} ended in an error, which its own output tells. This host stopped; {again}"
    if _NO_COORDINATOR.search(trace):
        return f"host 0, the coordinator, was lost. This host stopped; {again}"
    name = signal.Signals(-status).name
    return f"this host's process was ended by {name}; {again}{chr(10) if trace else ''}{trace}"
