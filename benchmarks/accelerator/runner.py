"""Running one part after another, each in its own processes, and none for longer than allowed.

A process runs a part's cases in order and says when it begins one. If it dies, its current case has
failed, and the last output is recorded; a new process continues after that case. A case that takes
too long is ended and treated in the same way.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from benchmarks.accelerator import records
from benchmarks.accelerator.config import Limits

_POLL_SECONDS = 0.1
_SHOWN = 4000  # characters of what a process printed last

Command = Callable[[Sequence[str]], Sequence[str]]


def run_part(
    folder: Path, part: str, command: Command, environment: Mapping[str, str], limits: Limits, said: Callable[[], None]
) -> None:
    """All cases of a part; `command` gives the process that skips some, `said` is called when there
    is more to show.

    `limits.seconds` are what the part has from now on.
    """
    deadline = time.monotonic() + limits.seconds
    while True:
        before = records.begun(records.read(folder), part)
        printed = (folder / records.LOG).stat().st_size if (folder / records.LOG).exists() else 0
        reason = _run(folder, part, command(before), environment, deadline, limits.case_seconds, said)
        found = records.read(folder)
        if reason is not None:
            failed = {"part": part, "case": _failed_case(found, part), "what": "failed", "reason": reason}
            records.append(folder, failed | {"printed": _tail(folder, printed)})
            said()
        left = records.remaining(found, part)
        if not left or len(records.begun(found, part)) == len(before):
            return
        if time.monotonic() >= deadline:
            missed = {"part": part, "case": "; ".join(sorted(left)), "what": "missed"}
            records.append(folder, missed)
            said()
            return


def _failed_case(found: list[records.Record], part: str) -> str:
    """The one that was begun and has no figures; where there is none, the process failed before or
    between cases.
    """
    open_cases = [case for case in records.begun(found, part) if case not in records.ended(found, part)]
    return open_cases[-1] if open_cases else "start"


def _run(
    folder: Path,
    part: str,
    command: Sequence[str],
    environment: Mapping[str, str],
    deadline: float,
    case_seconds: float,
    said: Callable[[], None],
) -> str | None:
    """Run one process to its end; says what was wrong with it, if anything."""
    with (folder / records.LOG).open("a") as log:
        log.write(f"\n==== {part}: {' '.join(command)}\n")
        log.flush()
        process = subprocess.Popen(command, env=dict(environment), stdout=log, stderr=log, start_new_session=True)
        try:
            return _watch(folder, process, deadline, case_seconds, said)
        finally:
            _end(process)


def _watch(
    folder: Path, process: subprocess.Popen[bytes], deadline: float, case_seconds: float, said: Callable[[], None]
) -> str | None:
    size, heard = -1, time.monotonic()
    while process.poll() is None:
        now = time.monotonic()
        path = folder / records.RESULTS
        if path.exists() and path.stat().st_size != size:
            size, heard = path.stat().st_size, now
            said()
        if now > deadline:
            return "the part's time was over"
        if now > heard + case_seconds:
            return f"it took more than {case_seconds:.0f} s"
        time.sleep(_POLL_SECONDS)
    said()
    return None if process.returncode == 0 else f"its process ended with status {process.returncode}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Of the process and all that it started, nothing is left."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _tail(folder: Path, printed: int) -> str:
    with (folder / records.LOG).open("rb") as file:
        file.seek(printed)
        return file.read().decode(errors="replace")[-_SHOWN:]
