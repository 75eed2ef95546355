"""Several workers on this machine, as processes that are started again when they die (engine.py says when).

A worker that is started again goes on in its own shard at once.

Ctrl-C and SIGTERM are for the parent, which passes one SIGTERM on to each worker: the workers are in sessions of their
own, so a terminal's Ctrl-C does not reach them twice. If the parent is killed, its workers read the end of the pipe
that it held, and stop.
"""

import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

from layertap.config.extract import ExtractConfig
from layertap.fleet.engine import EngineWorker, run_workers, say

_STOP_SECONDS = 60.0


def run_local(config: ExtractConfig) -> str:
    """Run workers as processes of this machine until the dataset is done; raises as `run_workers` does."""
    return run_workers(config, _Worker, _stop)


class _Worker(EngineWorker):
    def __init__(self, config: ExtractConfig) -> None:
        super().__init__(config)
        self.process: subprocess.Popen[bytes] | None = None
        self._readers: list[threading.Thread] = []

    @property
    def running(self) -> bool:
        return self.process is not None

    def start(self) -> None:
        """Start the process; its settings go through a pipe that stays open for as long as this process lives."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "layertap.fleet.local_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        reader = threading.Thread(target=self._pass_on, args=(self.process,), daemon=True)
        reader.start()
        self._readers.append(reader)
        if self.process.stdin is not None:
            with suppress(BrokenPipeError):  # it died at once, which `ended` will tell
                self.process.stdin.write(pickle.dumps(self.config))
                self.process.stdin.flush()

    def ended(self) -> int | None:
        process = self.process
        if process is None or process.poll() is None:
            return None
        self.process = None
        _close_quietly(process)
        return process.returncode

    def hush(self) -> None:
        """Wait for what its processes had to say."""
        for reader in self._readers:
            reader.join(_STOP_SECONDS)

    def _pass_on(self, process: subprocess.Popen[bytes]) -> None:
        """Everything that a worker says, each line with its number; read to its end, or the worker would wait."""
        for line in process.stdout or ():
            say(f"[{self.config.worker}] {line.decode(errors='replace')}")
        if process.stdout is not None:
            process.stdout.close()


def _stop(workers: Sequence[_Worker]) -> None:
    """Ask every worker that runs to stop, wait, and kill what does not."""
    running = [worker.process for worker in workers if worker.process is not None]
    for process in running:
        process.terminate()
    deadline = time.monotonic() + _STOP_SECONDS
    for process in running:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        _close_quietly(process)
    for worker in workers:
        worker.hush()


def _close_quietly(process: subprocess.Popen[bytes]) -> None:
    """Close the pipe to a process that has ended, whatever it has not read."""
    if process.stdin is not None:
        with suppress(BrokenPipeError):
            process.stdin.close()
