"""Run several workers as processes of this machine; base.py decides when to restart them.

A restarted worker resumes its own shard at once.

Ctrl-C and SIGTERM go to the parent, which sends one SIGTERM to each worker. Workers have their own
sessions, so a terminal's Ctrl-C does not reach them twice. If the parent is killed, its workers
read the end of the pipe that it held, and stop. `python -m layertap.fleet.engines.local` is such a
worker; it reads its settings from that pipe.
"""

import os
import pickle
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from typing import IO

from layertap.config.extract import ExtractConfig
from layertap.fleet.engines.base import RunningWorker, run_workers, say
from layertap.process.ending import run_guarded

_GRACE_SECONDS = 60.0


def run_local(config: ExtractConfig) -> str:
    """Run workers as processes of this machine until the dataset is done (base.py)."""
    return run_workers(config, _WorkerProcess, _GRACE_SECONDS)


class _WorkerProcess(RunningWorker):
    def __init__(self, config: ExtractConfig) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "layertap.fleet.engines.local"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._settings = self._process.stdin
        self._reader = threading.Thread(target=_pass_on, args=(config.worker, self._process.stdout), daemon=True)
        self._reader.start()
        with suppress(BrokenPipeError):  # it died at once, which `poll` will report
            self._settings.write(pickle.dumps(config))
            self._settings.flush()

    def poll(self) -> int | None:
        status = self._process.poll()
        if status is not None:
            self._close()
        return status

    def interrupt(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._close()

    def _close(self) -> None:
        """Wait for the last output of a process that has ended, and close the pipe to it."""
        self._reader.join(_GRACE_SECONDS)
        with suppress(BrokenPipeError):  # it has not read everything
            self._settings.close()


def _pass_on(worker: int, lines: IO[bytes]) -> None:
    """Print every line of a worker with its number; read to the end, or the worker would block."""
    with lines:
        for line in lines:
            say(f"[{worker}] {line.decode(errors='replace')}")


def main() -> int:
    """Run a worker with the settings on standard input; return the exit status."""
    config = pickle.load(sys.stdin.buffer)  # from our own parent
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    return run_guarded(lambda: _work(config))


def _work(config: ExtractConfig) -> int:
    from layertap.fleet.worker import work

    print(work(config).describe())
    return 0


def _end_with_parent() -> None:
    """Wait for the parent's end, then stop as after a SIGTERM; later output is discarded."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):  # the parent held the other ends
        os.dup2(nowhere, descriptor)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
