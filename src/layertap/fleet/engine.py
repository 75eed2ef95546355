"""What every engine does: keep several workers going until the dataset is done.

An engine says how a worker is started, how it ended, and how all are stopped; the rest is here. It does nothing but
that: which worker has which shard is between the workers and the claims. A worker that ends with 0 is done; with 2 (its
input is wrong) it stops all, since the others would say the same; however else it ends, it is started again, after a
pause that grows while no shard is finished. After `_MOST_DEATHS` deaths for each worker without a shard finished in
between, all are stopped. (A plain limit on restarts would give up a fleet of preemptible machines after some days.)
"""

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from typing import TypeVar

from layertap.config.extract import ExtractConfig
from layertap.errors import InputError, UsageError, WorkersFailedError
from layertap.fleet.sharded import read_dataset
from layertap.fleet.standing import look
from layertap.objects import open_store
from layertap.objects.base import ObjectStore

_MOST_DEATHS = 5
_LONGEST_PAUSE = 30.0
_POLL_SECONDS = 0.05


class EngineWorker(ABC):
    """One worker, through the processes that it is run by."""

    def __init__(self, config: ExtractConfig) -> None:
        self.config = config
        self.needed = True
        self._due = 0.0

    @property
    @abstractmethod
    def running(self) -> bool:
        """Whether it was started, and has not been told to have ended."""

    @abstractmethod
    def start(self) -> None:
        """Start a process for it."""

    @abstractmethod
    def ended(self) -> int | None:
        """The exit status, once, of a process that has ended."""

    def start_later(self, pause: float) -> None:
        """Start it again after so many seconds."""
        self._due = time.monotonic() + pause

    def start_when_due(self) -> None:
        """Start it if it is needed, does not run, and has rested."""
        if self.needed and not self.running and time.monotonic() >= self._due:
            self.start()


W = TypeVar("W", bound=EngineWorker)


def run_workers(config: ExtractConfig, make: Callable[[ExtractConfig], W], stop: Callable[[Sequence[W]], None]) -> str:
    """Run `config.sharded.num_workers` workers until the dataset is done, then `stop`; what to print at the end.

    Their ids are counted from `config.worker`. Raises WorkersFailedError where shards failed or workers keep dying,
    InputError where a worker says that its input is wrong.
    """
    url, count = config.sharded.sharded_dataset_dir, config.sharded.num_workers
    if url is None or count is None:
        raise UsageError("an engine needs --sharded_dataset_dir and --num_workers")
    with closing(open_store(url)) as store:
        progress = _Progress(store)
        workers = [make(_numbered(config, number)) for number in range(count)]
        try:
            _attend(workers, progress)
        finally:
            stop(workers)
        return progress.result()


def say(words: str) -> None:
    """Write to standard error; that nobody reads it any more (`2>&1 | head`) is no reason to stop a fleet."""
    with suppress(OSError):
        sys.stderr.write(words)
        sys.stderr.flush()


def _numbered(config: ExtractConfig, number: int) -> ExtractConfig:
    """The settings of one worker of several: its own id, and its own port."""
    port = config.metrics_port
    return replace(config, worker_id=config.worker + number, metrics_port=port + number if port else port)


def _attend(workers: Sequence[EngineWorker], progress: "_Progress") -> None:
    """Until all workers are done, start whichever does not run."""
    for worker in workers:
        worker.start()
    while any(worker.needed for worker in workers):
        time.sleep(_POLL_SECONDS)
        for worker in workers:
            status = worker.ended()
            if status == InputError.exit_status:
                raise InputError(f"worker {worker.config.worker} cannot go on, as it said above; all are stopped")
            if status is not None:
                worker.needed = status != 0 and progress.may_go_on(worker, _MOST_DEATHS * len(workers))
            worker.start_when_due()


class _Progress:
    """How far the dataset is, looked at when a worker dies."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._dataset = read_dataset(store)
        self._deaths = 0
        self._done = 0

    def may_go_on(self, worker: EngineWorker, most: int) -> bool:
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
        say(f"worker {worker.config.worker} died; it is started again in {pause:.1f} s\n")
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
