"""What every engine does: keep several workers going until the dataset is done.

An engine says how a worker is started, polled, interrupted and killed. The rest is here. Which
worker has which shard is between the workers and their claims. A worker that ends with 0 is done.
One that ends with 2 (its input is wrong) stops all, since the others would say the same. After any
other end a worker is started again, after a pause that grows while no shard is finished. After
`_MOST_DEATHS` deaths for each worker with no shard finished in between, all are stopped. (A plain
limit on restarts would give up a fleet of preemptible machines after some days.)
"""

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from layertap.config.extract import ExtractConfig
from layertap.errors import InputError, UsageError, WorkersFailedError
from layertap.fleet.sharded import open_claimable, read_dataset
from layertap.fleet.status import shard_states
from layertap.objects.base import ObjectStore

_MOST_DEATHS = 5
_LONGEST_PAUSE = 30.0
_POLL_SECONDS = 0.05


class RunningWorker(ABC):
    """A worker that was started: a process, or a task of a cluster."""

    @abstractmethod
    def poll(self) -> int | None:
        """Its exit status, once it has ended; not asked again after that."""

    @abstractmethod
    def interrupt(self) -> None:
        """Have it give its shard back and end."""

    @abstractmethod
    def kill(self) -> None:
        """End it at once."""


@dataclass
class _Worker:
    """One of the workers to keep going."""

    config: ExtractConfig
    running: RunningWorker | None = None
    needed: bool = True
    due: float = 0.0
    """When to start it, by the monotonic clock."""


def run_workers(config: ExtractConfig, start: Callable[[ExtractConfig], RunningWorker], grace_seconds: float) -> str:
    """Run `config.sharded.num_workers` workers until the dataset is done; what to print at the end.

    Their ids are counted from `config.worker`. In the end all are interrupted, and killed if they
    take longer than `grace_seconds`. Raises WorkersFailedError if shards failed or workers keep
    dying, InputError if a worker says that its input is wrong.
    """
    url, count = config.sharded.sharded_dataset_dir, config.sharded.num_workers
    if url is None or count is None:
        raise UsageError("an engine needs --sharded_dataset_dir and --num_workers")
    with open_claimable(url, "--sharded_dataset_dir") as store:
        progress = _Progress(store)
        workers = [_Worker(_numbered(config, number)) for number in range(count)]
        try:
            _keep_going(workers, start, progress)
        finally:
            _stop(workers, grace_seconds)
        return progress.describe()


def say(words: str) -> None:
    """Write to standard error; a fleet goes on if nobody reads it any more (`2>&1 | head`)."""
    with suppress(OSError):
        sys.stderr.write(words)
        sys.stderr.flush()


def _numbered(config: ExtractConfig, number: int) -> ExtractConfig:
    """The settings of one worker of several: its own id, and its own port."""
    port = config.metrics_port
    return replace(config, worker_id=config.worker + number, metrics_port=port + number if port else port)


def _keep_going(
    workers: Sequence[_Worker], start: Callable[[ExtractConfig], RunningWorker], progress: "_Progress"
) -> None:
    while any(worker.needed for worker in workers):
        for worker in workers:
            if worker.running is None and worker.needed and time.monotonic() >= worker.due:
                worker.running = start(worker.config)
            status = None if worker.running is None else worker.running.poll()
            if status is None:
                continue
            worker.running = None
            if status == InputError.exit_status:
                raise InputError(f"worker {worker.config.worker} cannot go on, as it said above; all are stopped")
            pause = None if status == 0 else progress.pause_after_death(worker.config.worker, len(workers))
            worker.needed, worker.due = pause is not None, time.monotonic() + (pause or 0.0)
        time.sleep(_POLL_SECONDS)


def _stop(workers: Sequence[_Worker], grace_seconds: float) -> None:
    """Interrupt every worker that runs, wait, and kill those that do not end."""
    running = [worker.running for worker in workers if worker.running is not None]
    for one in running:
        one.interrupt()
    deadline = time.monotonic() + grace_seconds
    while running := [one for one in running if one.poll() is None]:
        if time.monotonic() >= deadline:
            break
        time.sleep(_POLL_SECONDS)
    for one in running:
        one.kill()


class _Progress:
    """How far the dataset is, each time that a worker dies."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._dataset = read_dataset(store)
        self._deaths = 0
        self._done = 0

    def pause_after_death(self, worker: int, workers: int) -> float | None:
        """Seconds until the worker is started again; None if nothing is left to do.

        Raises WorkersFailedError if workers keep dying.
        """
        conditions = self._conditions()
        if set(conditions) <= {"done", "failed"}:
            return None
        done = conditions.count("done")
        self._deaths = 1 if done > self._done else self._deaths + 1
        self._done = done
        if self._deaths >= _MOST_DEATHS * workers:
            raise WorkersFailedError(
                f"workers died {self._deaths} times, and no dataset shard was finished meanwhile; the last was worker"
                f" {worker}. What is committed is safe; see above what they said, mend it, start again"
            )
        pause = min(_LONGEST_PAUSE, 0.5 * 2 ** min(self._deaths - 1, 10))
        say(f"worker {worker} died; it is started again in {pause:.1f} s\n")
        return pause

    def describe(self) -> str:
        """What became of the dataset; raises WorkersFailedError if shards failed."""
        conditions = self._conditions()
        if failed := conditions.count("failed"):
            raise WorkersFailedError(
                f"{failed} dataset shards failed; layertap shards status {self._store.url} says why"
            )
        return f"{conditions.count('done')} of {len(conditions)} dataset shards of {self._store.url} are done"

    def _conditions(self) -> list[str]:
        return [state.condition for state in shard_states(self._store, self._dataset)]
