"""One worker on a sharded dataset: claim a shard, extract it, commit it, and the next, until none is left.

Each shard is a run of its own (extract/run.py), with a folder, a manifest and a resume of its own, and with the model
and programs of the run before. The folder is

    {output_dir}/tpu_{worker_id}/shard_00003/{attempt}/        and the same below the bucket's prefix

An attempt is named by chance, and a worker that starts again goes on in the one on its disk. So two attempts at a shard
never write to one place, whoever makes them, and no file of a committed one is ever written over. The done-manifest
names the attempt that counts and every file of it; what no done-manifest names does not count, and may be deleted.

All workers of a sharded dataset extract the same: the first one writes what decides the bytes to `run.json`, and one
with other settings is refused. (Only JAX's version and the kind of device may differ.)

A shard that cannot be extracted as things are (a sample that is too long, say) is marked as failed and left out; the
others are done first, and then the worker says which failed. What is wrong with the worker itself (its disk is full,
its copy of the model is damaged, its --checkpoint_dir cannot be written) ends it at once, and the shard is free for
another: a worker that failed shards for its own trouble would fail them all, for everybody.
"""

import json
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from layertap.config.extract import ExtractConfig
from layertap.errors import (
    DamageError,
    DatasetError,
    HostsStoppedError,
    LayertapError,
    LeaseLostError,
    PromptError,
    RunMismatchError,
    UsageError,
    WorkersFailedError,
)
from layertap.extract import backend
from layertap.extract.hosts import join
from layertap.extract.metrics import Metrics, metered
from layertap.extract.progress import Watch
from layertap.extract.session import Session
from layertap.extract.setup import Setup, prepare
from layertap.fleet.claiming import Claimer, Taken
from layertap.fleet.claims import Claim
from layertap.fleet.leases import Heartbeat, Lease
from layertap.fleet.parts import Parts
from layertap.fleet.sharded import RUN, DatasetShard, ShardedDataset, read_dataset
from layertap.fleet.slices import Outcome, Slice
from layertap.objects import open_store
from layertap.objects.base import ObjectStore
from layertap.objects.ownership import exclusive
from layertap.objects.retry import Retry
from layertap.shards.manifest import differences

_OF_THE_SHARD = (DatasetError, PromptError, HostsStoppedError)  # any worker would meet them


@dataclass(frozen=True)
class WorkSummary:
    """What this start of a worker did."""

    worker: int
    shards: int
    """Dataset shards that it committed."""
    lost: int
    """Shards that were taken over from it while it worked on them."""
    samples: int
    tokens: int
    seconds: float
    leads: bool = True
    """Whether it counts samples; of the hosts of a slice, host 0 does."""

    @property
    def nothing_extracted(self) -> bool:
        """Whether it committed shards of which every task or sample was left out."""
        return self.leads and self.shards > 0 and self.samples == 0

    def describe(self) -> str:
        """Lines for a person."""
        lost = f"; {self.lost} were lost to other workers" if self.lost else ""
        return (
            f"worker {self.worker}: committed {self.shards} dataset shards, {self.samples} samples,"
            f" {self.tokens} tokens in {self.seconds:.1f} s{lost}"
        )


def work(config: ExtractConfig) -> WorkSummary:
    """Extract shards of `config.sharded.sharded_dataset_dir` until none is left, or `max_shards` are done.

    Raises WorkersFailedError where shards failed, after all others are done.
    """
    url = config.sharded.sharded_dataset_dir
    if url is None:
        raise UsageError("a worker needs --sharded_dataset_dir")
    with closing(open_store(url, Retry(max(30.0, config.sharded.lease_seconds)))) as store:
        if not store.conditional:
            raise UsageError(
                f"--sharded_dataset_dir {url}: shards cannot be claimed there; it has to be a folder or gs://"
            )
        dataset = read_dataset(store)
        if config.sharded.preferred_shard_id is not None:
            dataset.shard(config.sharded.preferred_shard_id)
        backend.configure()  # before hosts meet, which compiles
        hosts = join(config.hosts)
        folder = config.output_folder / f"tpu_{hosts.name(config.worker)}"
        with exclusive(folder):
            setup = prepare(config, hosts)
            agreement = _agree(store, setup)
            with metered(config.worker, folder, config.metrics_port) as metrics:
                return _Worker(setup, store, dataset, folder, metrics, agreement).work()


def _agree(store: ObjectStore, setup: Setup) -> str:
    """Write down what is extracted, or find that it is the same; the version of it. Raises RunMismatchError."""
    identity = {name: value for name, value in setup.manifest.identity.items() if name not in ("backend", "dataset")}
    data = json.dumps(identity, indent=1, sort_keys=True).encode() + b"\n"
    there = None
    while there is None:  # it may be reset between the two calls
        if (version := store.create(RUN, data)) is not None:
            return version
        there = store.read(RUN)
    if differing := differences(_decoded(there.data, store), identity):
        raise RunMismatchError(
            f"{store.url}: other workers extract something else from this dataset; give the same settings, or make"
            " another sharded dataset (or, when nothing of it is needed any more: layertap shards reset --all):\n  "
            + "\n  ".join(differing)
        )
    return there.version


def _decoded(run: bytes, store: ObjectStore) -> object:
    try:
        return json.loads(run)
    except ValueError as error:
        raise DamageError(
            f"{store.url}/{RUN}: is not JSON: {error}; delete it, if all workers extract the same"
        ) from error


class _Worker:
    """One start of a worker."""

    def __init__(
        self,
        setup: Setup,
        store: ObjectStore,
        dataset: ShardedDataset,
        folder: Path,
        metrics: Metrics,
        agreement: str,
    ) -> None:
        self._setup = setup
        self._config = setup.config
        self._store = store
        self._parts = Parts(setup, store, folder)
        self._slice = Slice(setup.hosts, self._parts, Session())
        self._dataset = dataset
        self._metrics = metrics
        self._agreement = agreement
        self._samples = self._tokens = 0
        self._begun = time.monotonic()
        self._claimer = Claimer(
            store,
            dataset,
            self._claim,
            self._parts.unfinished,
            preferred=setup.config.sharded.preferred_shard_id,
            note=self._note,
        )

    def work(self) -> WorkSummary:
        """Host 0's work; other hosts follow it."""
        with closing(self._slice.session):
            if self._setup.hosts.index > 0:
                self._follow()
            else:
                self._lead()
        seconds = time.monotonic() - self._begun
        counts = self._metrics.dataset_shards, self._metrics.leases_lost, self._samples, self._tokens
        return WorkSummary(self._config.worker, *counts, seconds, leads=self._setup.hosts.index == 0)

    def _follow(self) -> None:
        watch = Watch(self._metrics.begins)
        self._metrics.dataset_shards = self._slice.follow(self._dataset, watch)

    def _lead(self) -> None:
        most = self._config.sharded.max_shards
        while (most is None or self._metrics.dataset_shards < most) and (taken := self._claimer.next()) is not None:
            try:
                self._extract(taken)
            except LeaseLostError as error:
                if self._setup.hosts.count > 1:
                    raise  # the others are in the middle of a step that this host has left
                self._metrics.leases_lost += 1
                self._note(str(error))
        self._slice.dismiss()
        if self._claimer.failed:
            raise WorkersFailedError(
                f"worker {self._config.worker} committed {self._metrics.dataset_shards} dataset shards, but these"
                f" failed: {', '.join(self._claimer.failed)}. `layertap shards status {self._store.url}` says why;"
                " repair, then free them with `layertap shards reset`"
            )

    def _extract(self, taken: Taken) -> None:
        """Extract and commit one shard; raises LeaseLostError where another worker took it over."""
        shard, lease = taken.shard, taken.lease
        self._metrics.dataset_shard = shard.name
        begun = time.monotonic()
        with _released_unless_settled(lease):
            self._still_agree()
            self._note(f"{shard.name}: {shard.records} records")
            try:
                with Heartbeat(lease, self._metrics.of_this_run, self._troubled) as heartbeat:
                    watch = Watch(self._metrics.begins, heartbeat.check)
                    outcomes = self._slice.lead(shard, lease.claim.attempt, watch)
            except _OF_THE_SHARD as error:
                if self._setup.hosts.count > 1 and not isinstance(error, HostsStoppedError):
                    raise  # this host's alone
                lease.fail(str(error))
                self._note(f"{shard.name} failed: {error}")
                return
            except DamageError:
                self._parts.end(shard, lease.claim.attempt)
                self._note(f"{shard.name}: what there is of it is damaged; it begins anew at the next start")
                raise
            lease.commit(_done(shard, lease, outcomes, time.monotonic() - begun))
        self._parts.end(shard, lease.claim.attempt)
        self._metrics.dataset_shards += 1
        self._samples += sum(outcome["samples"] for outcome in outcomes)
        self._tokens += sum(outcome["tokens"] for outcome in outcomes)

    def _still_agree(self) -> None:
        """Agree once more where `shards reset --all` came after it, with no claim that would have told of this worker.

        To be called while a claim is held: a reset that has not seen that puts back what it forgot.
        """
        there = self._store.stat(RUN)
        if there is None or there.version != self._agreement:
            self._agreement = _agree(self._store, self._setup)

    def _claim(self, attempt: str | None) -> Claim:
        """A claim that goes on in an unfinished attempt, or begins one."""
        return Claim(
            worker=self._config.worker,
            host=socket.gethostname(),
            nonce=uuid4().hex,
            attempt=attempt or uuid4().hex[:8],
            seconds=self._config.sharded.lease_seconds,
        )

    def _troubled(self, error: LayertapError) -> None:
        self._metrics.failed_heartbeats += 1
        self._note(f"the heartbeat failed, and is tried again: {error}")

    def _note(self, message: str) -> None:
        print(f"worker {self._config.worker}: {message}", file=sys.stderr, flush=True)


@contextmanager
def _released_unless_settled(lease: Lease) -> Iterator[None]:
    """Give the shard back where the block ends in an exception, so that another worker need not wait for it."""
    with ExitStack() as undo:
        undo.callback(lease.release)  # harmless where another worker has it already
        yield
        undo.pop_all()


def _done(shard: DatasetShard, lease: Lease, outcomes: Sequence[Outcome], seconds: float) -> Mapping[str, Any]:
    """The done-manifest: which files are this shard's activations; where several hosts made them, host by host."""
    claim = lease.claim
    alone = {} if len(outcomes) > 1 else outcomes[0]
    return {
        "format_version": 1,
        "shard": shard.name,
        "worker": claim.worker,
        "host": claim.host,
        "attempt": claim.attempt,
        **alone,
        "samples": sum(outcome["samples"] for outcome in outcomes),
        "tokens": sum(outcome["tokens"] for outcome in outcomes),
        "seconds": round(seconds, 3),
        "lost_by": list(claim.lost_by),
        "hosts": [] if alone else list(outcomes),
    }
