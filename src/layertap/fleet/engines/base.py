"""Keep several workers running until the dataset is done; all engines share this.

An engine defines how to start, poll, interrupt and kill a worker. The workers choose their shards
themselves, through claims. A worker that ends with 0 is done. One that ends with 2 (its input is
wrong) stops all, because the others would fail the same way. After any other end a worker is
restarted, after a pause that grows while no shard is finished. All workers are stopped after
`_MOST_DEATHS` deaths per worker with no shard finished in between. (A plain limit on restarts would
give up a fleet of preemptible machines after some days.)
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
from layertap.fleet.status import read_shard_states
from layertap.objects.base import ObjectStore

_MOST_DEATHS = 5
_LONGEST_PAUSE = 30.0
_POLL_SECONDS = 0.05


class RunningWorker(ABC):
    """A started worker: a process, or a task of a cluster."""

    @abstractmethod
    def poll(self) -> int | None:
        """Return its exit status once it has ended; do not call it again after that."""

    @abstractmethod
    def interrupt(self) -> None:
        """Make it release its shard and end."""

    @abstractmethod
    def kill(self) -> None:
        """End it at once."""


@dataclass
class _Worker:
    """One of the workers to keep running."""

    config: ExtractConfig
    running: RunningWorker | None = None
    needed: bool = True
    due: float = 0.0
    """When to start it, by the monotonic clock."""


def run_workers(config: ExtractConfig, start: Callable[[ExtractConfig], RunningWorker], grace_seconds: float) -> str:
    """Run `config.sharded.num_workers` workers until the dataset is done; return a closing message.

    Their ids are counted from `config.worker`. At the end all are interrupted, and killed if they
    need longer than `grace_seconds`. Raises WorkersFailedError if shards failed or workers keep
    dying, InputError if a worker reports wrong input.
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
    """Write to standard error; a fleet continues if nobody reads it any more (`2>&1 | head`)."""
    with suppress(OSError):
        sys.stderr.write(words)
        sys.stderr.flush()


def _numbered(config: ExtractConfig, number: int) -> ExtractConfig:
    """Return the settings of one worker, with its own id and port."""
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
                raise InputError(
                    f"worker {worker.config.worker} stopped with the error above, so all workers are stopped"
                )
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
    """Tracks the progress of the dataset when workers die."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._dataset = read_dataset(store)
        self._deaths = 0
        self._done = 0

    def pause_after_death(self, worker: int, workers: int) -> float | None:
        """Return seconds until the worker is restarted; None if nothing is left to do.

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
                f"workers died {self._deaths} times without finishing a dataset shard; the last was worker {worker}."
                " Committed shards are safe; fix the errors above and run the same command again"
            )
        pause = min(_LONGEST_PAUSE, 0.5 * 2 ** min(self._deaths - 1, 10))
        say(f"worker {worker} died; restarting it in {pause:.1f} s\n")
        return pause

    def describe(self) -> str:
        """Describe the outcome; raises WorkersFailedError if shards failed."""
        conditions = self._conditions()
        if failed := conditions.count("failed"):
            raise WorkersFailedError(
                f"{failed} dataset shards failed; `layertap shards status {self._store.url}` shows why"
            )
        return f"{conditions.count('done')} of {len(conditions)} dataset shards of {self._store.url} are done"

    def _conditions(self) -> list[str]:
        return [state.condition for state in read_shard_states(self._store, self._dataset)]
