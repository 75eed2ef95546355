"""One worker on a sharded dataset: it claims, extracts and commits shards until none is left.

Each shard is a separate run (pipeline/run.py) with its own folder, manifest and resume. It reuses
the model and programs of the run before. The folder is

    {output_dir}/tpu_{worker_id}/shard_00003/{attempt}/    and the same below the bucket's prefix

and `output_dir` may be a URL. The name of an attempt is random, and a restarted worker resumes the
one that it finds there. So two attempts at a shard never write to the same place, and no file of a
committed attempt is overwritten. The done-manifest names the attempt that counts, with all its
files. What no done-manifest names does not count, and may be deleted.

All workers of a sharded dataset extract the same: the first one writes the settings that decide the
bytes to `run.json`, and a worker with other settings is refused. (Only the version of JAX and the
kind of device may differ.)

A shard that cannot be extracted (for example, a sample is too long) is marked as failed and left
out. The worker does the others first, and then reports which failed. If something is wrong with the
worker itself (its disk is full, its copy of the model is damaged), it ends at once, and its shard
is free for another worker. A worker that failed shards because of its own trouble would fail them
all, for everybody.
"""

import json
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

from layertap.config.extract import ExtractConfig
from layertap.core.strict_json import dump_json
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
from layertap.fleet.attempt import Attempts, Outcome
from layertap.fleet.claiming import Claimer
from layertap.fleet.claims import Claim, Heartbeat, Lease
from layertap.fleet.sharded import RUN, DatasetShard, ShardedDataset, open_claimable, read_dataset
from layertap.objects import open_store
from layertap.objects.base import ObjectStore
from layertap.objects.folder_lock import exclusive
from layertap.objects.ownership import Owner
from layertap.objects.retry import Retry
from layertap.pipeline import backend
from layertap.pipeline.hosts import Hosts, join
from layertap.pipeline.metrics import Metrics, metered
from layertap.pipeline.progress import Watch
from layertap.pipeline.session import Session
from layertap.pipeline.setup import Setup, prepare
from layertap.shards.manifest import differences

_OF_THE_SHARD = (DatasetError, PromptError, HostsStoppedError)  # any worker would get them


@dataclass(frozen=True)
class WorkSummary:
    """What one start of a worker did."""

    worker: int
    shards: int
    """Dataset shards that it committed."""
    lost: int
    """Shards that others took over while it worked on them."""
    samples: int
    tokens: int
    seconds: float
    leads: bool = True
    """Whether it counts samples; only host 0 of a slice does."""

    @property
    def nothing_extracted(self) -> bool:
        """Whether it committed shards, but left out every task or sample in them."""
        return self.leads and self.shards > 0 and self.samples == 0

    def describe(self) -> str:
        """Return a line for the user."""
        lost = f"; {self.lost} were lost to other workers" if self.lost else ""
        return (
            f"worker {self.worker}: committed {self.shards} dataset shards, {self.samples} samples,"
            f" {self.tokens} tokens in {self.seconds:.1f} s{lost}"
        )


def work(config: ExtractConfig) -> WorkSummary:
    """Extract shards of `--sharded_dataset_dir` until none is left, or `--max_shards` are done.

    Raises WorkersFailedError if shards failed, after all others are done.
    """
    url, own = config.sharded.sharded_dataset_dir, config.sharded
    if url is None:
        raise UsageError("a worker needs --sharded_dataset_dir")
    with open_claimable(url, "--sharded_dataset_dir", Retry(max(30.0, own.lease_seconds))) as store:
        dataset = read_dataset(store)
        if own.preferred_shard_id is not None:
            dataset.shard(own.preferred_shard_id)
        backend.configure()  # before the hosts connect, which compiles
        hosts = join(config.hosts)
        with _own_place(config, hosts) as (place, scratch):
            setup = prepare(config, hosts)
            agreement = _agree(store, setup)
            with metered(config.worker, place.url, config.metrics_port) as metrics, closing(Session()) as session:
                attempts = Attempts(setup, store, place, scratch, session)
                return _Worker(setup, store, dataset, attempts, metrics, agreement).work()


@contextmanager
def _own_place(config: ExtractConfig, hosts: Hosts) -> Iterator[tuple[ObjectStore, Path]]:
    """Where this host alone writes its output meanwhile, and a folder for records.

    Raises StorageError where another process has it.
    """
    where = config.output_below(f"tpu_{hosts.name(config.worker)}")
    if config.output_url is None:
        with exclusive(Path(where)), closing(open_store(where)) as place:
            yield place, Path(where)
        return
    retry = Retry(config.upload.upload_retry_seconds)
    with (
        closing(open_store(where, retry)) as place,
        Owner(place),
        TemporaryDirectory(prefix="layertap-records-") as scratch,
    ):
        yield place, Path(scratch)


def _agree(store: ObjectStore, setup: Setup) -> str:
    """Record the settings, or check that they are the same; return the version of `run.json`.

    Raises RunMismatchError if other workers extract with other settings.
    """
    identity = {name: value for name, value in setup.manifest.identity.items() if name not in ("backend", "dataset")}
    data = dump_json(identity, indent=1, sort_keys=True).encode() + b"\n"
    there = None
    while there is None:  # it may be reset between the two calls
        if (version := store.create(RUN, data)) is not None:
            return version
        there = store.read(RUN)
    try:
        differing = differences(json.loads(there.data), identity)
    except ValueError as error:
        raise DamageError(
            f"{store.url}/{RUN}: is not JSON: {error}; delete it if all workers have the same settings"
        ) from error
    if differing:
        raise RunMismatchError(
            f"{store.url}: other workers extract this dataset with other settings; give the same settings, or create"
            " another sharded dataset (or, if you need none of its output: layertap shards reset --all):\n  "
            + "\n  ".join(differing)
        )
    return there.version


@dataclass
class _Worker:
    """One start of a worker, on one host."""

    setup: Setup
    store: ObjectStore
    dataset: ShardedDataset
    attempts: Attempts
    metrics: Metrics
    agreement: str
    samples: int = 0
    tokens: int = 0

    def work(self) -> WorkSummary:
        """Do the work of host 0; other hosts follow it."""
        begun, leads = time.monotonic(), self.setup.hosts.index == 0
        if leads:
            self._lead()
        else:
            self.metrics.dataset_shards = self.attempts.follow(self.dataset, Watch(self.metrics.begins))
        counts = self.metrics.dataset_shards, self.metrics.leases_lost, self.samples, self.tokens
        return WorkSummary(self.setup.config.worker, *counts, time.monotonic() - begun, leads=leads)

    def _lead(self) -> None:
        config, most = self.setup.config, self.setup.config.sharded.max_shards
        claimer = Claimer(
            self.store,
            self.dataset,
            self._make_claim,
            self.attempts.find_unfinished,
            self._note,
            config.sharded.preferred_shard_id,
        )
        while (most is None or self.metrics.dataset_shards < most) and (taken := claimer.take_next()) is not None:
            try:
                with ExitStack() as undo:
                    undo.callback(
                        taken[1].release
                    )  # so that nobody has to wait; harmless if another worker already has it
                    self._extract(*taken)
                    undo.pop_all()
            except LeaseLostError as error:
                if self.setup.hosts.count > 1:
                    raise  # the other hosts are in the middle of a step that this host has left
                self.metrics.leases_lost += 1
                self._note(str(error))
        self.attempts.dismiss()
        if claimer.failed:
            raise WorkersFailedError(
                f"worker {config.worker} committed {self.metrics.dataset_shards} dataset shards, but these"
                f" failed: {', '.join(sorted(claimer.failed))}. `layertap shards status {self.store.url}` shows"
                " why; fix the cause, then free them with `layertap shards reset`"
            )

    def _extract(self, shard: DatasetShard, lease: Lease) -> None:
        """Extract and commit one shard; raises LeaseLostError if another worker took it over."""
        self.metrics.dataset_shard = shard.name
        attempt, begun = lease.claim.attempt, time.monotonic()
        self._agree_again()
        self._note(f"{shard.name}: {shard.records} records")
        try:
            with Heartbeat(lease, self.metrics.of_this_run, self._count_failed_beat) as heartbeat:
                watch = Watch(self.metrics.begins, heartbeat.check)
                outcomes = self.attempts.lead(shard, attempt, watch)
        except _OF_THE_SHARD as error:
            if self.setup.hosts.count > 1 and not isinstance(error, HostsStoppedError):
                raise  # the other hosts did not get this error
            lease.fail(str(error))
            self._note(f"{shard.name} failed: {error}")
            return
        except DamageError:
            self.attempts.end(shard, attempt)
            self._note(f"{shard.name}: its output so far is damaged; the next start begins it again")
            raise
        lease.commit(_make_done(shard, lease.claim, outcomes, time.monotonic() - begun))
        self.attempts.end(shard, attempt)
        self.metrics.dataset_shards += 1
        self.samples += sum(outcome["samples"] for outcome in outcomes)
        self.tokens += sum(outcome["tokens"] for outcome in outcomes)

    def _agree_again(self) -> None:
        """Agree again if `shards reset --all` ran before this worker had a claim.

        Call it while you hold a claim: a reset that did not see the claim restores `run.json`.
        """
        there = self.store.stat(RUN)
        if there is None or there.version != self.agreement:
            self.agreement = _agree(self.store, self.setup)

    def _make_claim(self, attempt: str | None) -> Claim:
        """Make a claim that resumes an unfinished attempt, or begins a new one."""
        return Claim(
            worker=self.setup.config.worker,
            host=socket.gethostname(),
            nonce=uuid4().hex,
            attempt=attempt or uuid4().hex[:8],
            seconds=self.setup.config.sharded.lease_seconds,
        )

    def _count_failed_beat(self, error: LayertapError) -> None:
        self.metrics.failed_heartbeats += 1
        self._note(f"the heartbeat failed and will be retried: {error}")

    def _note(self, message: str) -> None:
        print(f"worker {self.setup.config.worker}: {message}", file=sys.stderr, flush=True)


def _make_done(shard: DatasetShard, claim: Claim, outcomes: Sequence[Outcome], seconds: float) -> Mapping[str, Any]:
    """Make the done-manifest: the files with this shard's activations, by host if there are
    several.
    """
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
