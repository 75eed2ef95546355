"""Run a host's process under a supervisor that explains how it ended.

If a host is lost, JAX's runtime aborts the other hosts after `HEARTBEAT_SECONDS`, deep in C++, with
a stack trace that names the lost host somewhere. No Python code runs in that process any more. So
with `--multihost` the command runs itself as a child, and passes on its output except such traces.
At the end it says which host was lost, and that the same command resumes. It forwards signals.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# The other hosts give up a host that is silent for this long.
HEARTBEAT_SECONDS = 20

_MARK = "LAYERTAP_SUPERVISED"
# How the coordination service (xla/tsl) reports tasks without a heartbeat, and a coordinator that
# does not answer.
_LOST = re.compile(r"[Tt]ask[ :/]*(\d+) heartbeat timeout|unhealthy \(stopped sending heartbeats\):.*?(\d+)")
# The host that waits at the final barrier is the one that ended first.
_ENDED = re.compile(r"The first task at the barrier: (\d+)")
_NO_COORDINATOR = re.compile(
    r"coordination service .*unavailable|Failed to send RPC to coordination service|leader", re.I
)
_TRACE = re.compile(r"F\d{4} .*\] Terminating process because|\*\*\* Check failure|    @ +0x")


def is_child() -> bool:
    """Return whether this process already has a supervisor."""
    return _MARK in os.environ


def supervise() -> int:
    """Run this command as a child; return its exit status, or 1 if JAX's runtime ended it."""
    child = subprocess.Popen(
        [sys.executable, *sys.orig_argv[1:]], env={**os.environ, _MARK: "1"}, stderr=subprocess.PIPE, text=True
    )
    with child, _forward_signals(child):
        trace = _pass_output(child)
        status = child.wait()
    if status >= 0:
        _say(trace)  # it was not the trace of an abort
        return status
    _say(f"error: {_explain(status, trace)}\n")
    return 1


@contextmanager
def _forward_signals(child: "subprocess.Popen[str]") -> Iterator[None]:
    """Forward signals to the child. Ctrl-C reaches it directly if both share a terminal."""
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


def _pass_output(child: "subprocess.Popen[str]") -> str:
    """Copy the child's standard error to ours, except the trace of an abort, which is returned."""
    held: list[str] = []
    assert child.stderr is not None
    for line in child.stderr:
        if held or _TRACE.match(line):
            held.append(line)
        else:
            _say(line)
    return "".join(held)


def _say(words: str) -> None:
    """Write to standard error. If nobody reads it any more, keep supervising the child."""
    with suppress(OSError):
        sys.stderr.write(words)
        sys.stderr.flush()


def _explain(status: int, trace: str) -> str:
    again = "committed shards are safe; run the same command on every host again to resume"
    if found := _LOST.search(trace):
        return f"host {found[1] or found[2]} was lost: silent for {HEARTBEAT_SECONDS} s. This host stopped; {again}"
    if found := _ENDED.search(trace):
        return f"host {found[1]} ended with an error; see its own output. This host stopped; {again}"
    if _NO_COORDINATOR.search(trace):
        return f"host 0, the coordinator, was lost. This host stopped; {again}"
    name = signal.Signals(-status).name
    return f"this host's process was ended by {name}; {again}{chr(10) if trace else ''}{trace}"
