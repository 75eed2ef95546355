"""Several workers on this machine, as processes that are started again when they die.

The parent does nothing but that: which worker has which shard is between the workers and the claims. A worker that ends
with 0 is done; with 2 (its input is wrong) it stops all, since the others would say the same; however else it ends, it
is started again, after a pause that grows while no shard is finished, and goes on in its own shard at once. After
`_MOST_DEATHS` deaths for each worker without a shard finished in between, all are stopped.

Ctrl-C and SIGTERM are for the parent, which passes one SIGTERM on to each worker: the workers are in sessions of their
own, so a terminal's Ctrl-C does not reach them twice. If the parent is killed, its workers read the end of the pipe
that it held, and stop.
"""

import pickle
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace

from layertap.config import ExtractConfig
from layertap.errors import InputError, UsageError, WorkersFailedError
from layertap.fleet.sharded import read_dataset
from layertap.fleet.standing import look
from layertap.store.objects import ObjectStore, open_store

_MOST_DEATHS = 5
_LONGEST_PAUSE = 30.0
_POLL_SECONDS = 0.05
_STOP_SECONDS = 60.0


def run_local(config: ExtractConfig) -> str:
    """Run `config.sharded.num_workers` workers until the dataset is done; what to print at the end.

    Their ids are counted from `config.worker`. Raises WorkersFailedError where shards failed or workers keep dying,
    InputError where a worker says that its input is wrong.
    """
    url, count = config.sharded.sharded_dataset_dir, config.sharded.num_workers
    if url is None or count is None:
        raise UsageError("--engine local needs --sharded_dataset_dir and --num_workers")
    with closing(open_store(url)) as store:
        progress = _Progress(store)
        workers = [_Worker(_numbered(config, number)) for number in range(count)]
        try:
            for worker in workers:
                worker.start()
            _attend(workers, progress)
        finally:
            _stop(workers)
        return progress.result()


def _numbered(config: ExtractConfig, number: int) -> ExtractConfig:
    """The settings of one worker of several: its own id, and its own port."""
    port = config.metrics_port
    return replace(config, worker_id=config.worker + number, metrics_port=port + number if port else port)


def _attend(workers: "list[_Worker]", progress: "_Progress") -> None:
    """Until all workers are done, start again whichever dies."""
    while any(worker.needed for worker in workers):
        time.sleep(_POLL_SECONDS)
        for worker in workers:
            status = worker.ended()
            if status == InputError.exit_status:
                raise InputError(f"worker {worker.config.worker} cannot go on, as it said above; all are stopped")
            if status is not None:
                worker.needed = status != 0 and progress.may_go_on(worker, _MOST_DEATHS * len(workers))
            worker.start_when_due()


def _stop(workers: "list[_Worker]") -> None:
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


@dataclass
class _Worker:
    """One worker, through the processes that it is run by."""

    config: ExtractConfig
    needed: bool = True
    process: subprocess.Popen[bytes] | None = None
    _due: float = 0.0
    _readers: list[threading.Thread] = field(default_factory=list)

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
        """The exit status, once, of a process that has ended."""
        process = self.process
        if process is None or process.poll() is None:
            return None
        self.process = None
        _close_quietly(process)
        return process.returncode

    def start_later(self, pause: float) -> None:
        """Start it again after so many seconds."""
        self._due = time.monotonic() + pause

    def start_when_due(self) -> None:
        """Start it if it is needed, does not run, and has rested."""
        if self.needed and self.process is None and time.monotonic() >= self._due:
            self.start()

    def hush(self) -> None:
        """Wait for what its processes had to say."""
        for reader in self._readers:
            reader.join(_STOP_SECONDS)

    def _pass_on(self, process: subprocess.Popen[bytes]) -> None:
        """Everything that a worker says, each line with its number."""
        for line in process.stdout or ():
            sys.stderr.write(f"[{self.config.worker}] {line.decode(errors='replace')}")
        if process.stdout is not None:
            process.stdout.close()


def _close_quietly(process: subprocess.Popen[bytes]) -> None:
    """Close the pipe to a process that has ended, whatever it has not read."""
    if process.stdin is not None:
        with suppress(BrokenPipeError):
            process.stdin.close()


class _Progress:
    """How far the dataset is, looked at when a worker dies."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._dataset = read_dataset(store)
        self._deaths = 0
        self._done = 0

    def may_go_on(self, worker: _Worker, most: int) -> bool:
        """Whether a worker that died shall be started again; raises WorkersFailedError when that seems hopeless."""
        conditions = [standing.condition for standing in look(self._store, self._dataset)]
        if set(conditions) <= {"done", "failed"}:
            return False
        done = conditions.count("done")
        self._deaths = 1 if done > self._done else self._deaths + 1
        self._done = done
        if self._deaths >= most:
            raise WorkersFailedError(
                f"workers died {self._deaths} times, and no dataset shard was finished meanwhile; the last was worker"
                f" {worker.config.worker}. What is committed is safe; see above what they said, mend it, start again"
            )
        pause = min(_LONGEST_PAUSE, 0.5 * 2 ** min(self._deaths - 1, 10))
        print(f"worker {worker.config.worker} died; it is started again in {pause:.1f} s", file=sys.stderr, flush=True)
        worker.start_later(pause)
        return True

    def result(self) -> str:
        """What became of the dataset; raises WorkersFailedError where shards failed."""
        conditions = [standing.condition for standing in look(self._store, self._dataset)]
        failed = conditions.count("failed")
        if failed:
            raise WorkersFailedError(
                f"{failed} dataset shards failed; layertap shards status {self._store.url} says why"
            )
        return f"{conditions.count('done')} of {len(conditions)} dataset shards of {self._store.url} are done"
