"""Report the progress of a sharded dataset and its workers; free shards.

All facts come from the sharded dataset: from claims, which heartbeats keep current, and from
done-manifests. No worker is contacted and no service has to run, so it works from any machine that
may read the bucket. A done-manifest never changes, so `--watch` reads each only once.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, get_args

from layertap.core.strict_json import dump_json
from layertap.errors import DamageError, UsageError
from layertap.fleet.claims import CLAIMS, DONE, Claim, claim_name, done_name, has_run_out, read_claim, shard_of
from layertap.fleet.sharded import RUN, DatasetShard, ShardedDataset
from layertap.objects.base import ObjectStore

Condition = Literal["done", "claimed", "lost", "failed", "free"]

_READERS = 16


@dataclass(frozen=True)
class ShardState:
    """One shard at one moment."""

    shard: DatasetShard
    condition: Condition
    """lost: the holder was silent for the length of its lease, so the next worker takes it over."""
    claim: Claim | None = None
    heard: float | None = None
    """Seconds since the claim was last written."""

    def metric(self, name: str) -> float:
        """Return a metric of the holder's last heartbeat; 0 if it has none."""
        return self.claim.metrics.get(name, 0) if self.claim else 0


def read_shard_states(store: ObjectStore, dataset: ShardedDataset) -> list[ShardState]:
    """Read the state of every shard; costs two listings, and one read per claimed shard."""
    # Claims first: a shard that is committed in between is then in both lists, not in none.
    claimed = {shard_of(info.name) for info in store.list(CLAIMS)}
    done = {shard_of(info.name) for info in store.list(DONE)}
    open_ones = [shard for shard in dataset.shards if shard.name in claimed - done]
    with ThreadPoolExecutor(_READERS) as pool:
        states = {state.shard.id: state for state in pool.map(partial(_read_state, store), open_ones)}
    return [
        ShardState(shard, "done") if shard.name in done else states.get(shard.id, ShardState(shard, "free"))
        for shard in dataset.shards
    ]


def _read_state(store: ObjectStore, shard: DatasetShard) -> ShardState:
    found = read_claim(store, shard.name)
    if found is None:
        return ShardState(shard, "free")
    seen, claim = found
    heard = max(0.0, store.server_time() - seen.updated)
    if claim.state == "failed":
        return ShardState(shard, "failed", claim, heard)
    return ShardState(shard, "lost" if has_run_out(store, seen, claim) else "claimed", claim, heard)


def read_done(store: ObjectStore, shard: str) -> Mapping[str, Any] | None:
    """Read the done-manifest of a shard; raises DamageError if it is damaged."""
    found = store.read(done_name(shard))
    if found is None:
        return None
    try:
        done = json.loads(found.data)
        if done["shard"] != shard:
            raise ValueError(f"belongs to {done['shard']}")
    except (ValueError, KeyError, TypeError) as error:
        raise DamageError(
            f"{store.url}/{done_name(shard)}: is not a valid done-manifest ({error!r}); reset the shard"
        ) from error
    return done


def read_all_done(store: ObjectStore, shards: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """Read the done-manifests of these shards, except those deleted in the meantime."""
    with ThreadPoolExecutor(_READERS) as pool:
        found = pool.map(partial(read_done, store), shards)
        return {shard: done for shard, done in zip(shards, found, strict=True) if done is not None}


@dataclass(frozen=True)
class WorkerStatus:
    """One worker."""

    worker: int
    host: str
    shard: int | None
    """The dataset shard that it holds."""
    condition: Condition | None
    """claimed, or lost if the worker was silent for the length of its lease."""
    tokens_per_second: float
    waiting_for: str | None
    heard_seconds_ago: float | None
    shards_done: int
    samples_done: int
    tokens_done: int


@dataclass(frozen=True)
class FleetStatus:
    """The fleet at one moment."""

    shards: Mapping[Condition, tuple[int, ...]]
    """The dataset shards in each condition."""
    unsettled: tuple[int, ...]
    """Claimed or lost shards that are committed but have no done-manifest yet."""
    samples_left: int | None
    """None before any worker has started: only workers know how many prompts a task gives."""
    tokens_per_second: float
    """The speed of all live workers together."""
    seconds_left: float | None
    """None if nobody works, or the speed is not known yet."""
    takeovers: int
    """How often a shard was taken over from a silent worker."""
    failures: Mapping[int, str]
    """Dataset shards that failed, and why."""
    workers: tuple[WorkerStatus, ...]

    @property
    def ended(self) -> bool:
        """Whether every shard is done or failed."""
        return all(condition in ("done", "failed") or not shards for condition, shards in self.shards.items())

    def to_json(self) -> str:
        """Return everything as JSON."""
        return dump_json(asdict(self), indent=1)


class FleetWatch:
    """Reads the status of a fleet, as often as you ask."""

    def __init__(self, store: ObjectStore, dataset: ShardedDataset) -> None:
        self._store = store
        self._dataset = dataset
        self._done: dict[str, Mapping[str, Any]] = {}

    def read_status(self) -> FleetStatus:
        """Read the current status of the fleet."""
        states = read_shard_states(self._store, self._dataset)
        self._read_done([state.shard.name for state in states if state.condition == "done"])
        busy = [state for state in states if state.condition == "claimed"]
        claims = [(state.shard.id, state.claim) for state in states if state.claim]
        rate = sum(state.metric("tokens_per_second") for state in busy)
        left = self._samples_left(states)
        return FleetStatus(
            shards={
                condition: tuple(state.shard.id for state in states if state.condition == condition)
                for condition in get_args(Condition)
            },
            unsettled=tuple(shard for shard, claim in claims if claim.state == "committed"),
            samples_left=left,
            tokens_per_second=rate,
            seconds_left=self._seconds_left(left, rate, busy),
            takeovers=sum(len(done["lost_by"]) for done in self._done.values())
            + sum(len(claim.lost_by) for _, claim in claims),
            failures={shard: f"{claim.error} (worker {claim.holder})" for shard, claim in claims if claim.error},
            workers=self._workers(states),
        )

    def _read_done(self, names: list[str]) -> None:
        known = {name: self._done[name] for name in names if name in self._done}  # others were reset
        self._done = known | read_all_done(self._store, [name for name in names if name not in known])

    def _samples_left(self, states: Iterable[ShardState]) -> int | None:
        run = self._store.read(RUN)
        if run is None:
            return None
        try:
            predictions = int(json.loads(run.data)["prompts"]["predictions_per_task"])
        except (ValueError, KeyError, TypeError) as error:
            raise DamageError(
                f"{self._store.url}/{RUN}: was not written by workers ({error!r}); reset with layertap shards reset"
                " --all"
            ) from error
        waiting = (state for state in states if state.condition not in ("done", "failed"))
        return sum(max(0, state.shard.samples(predictions) - int(state.metric("samples"))) for state in waiting)

    def _seconds_left(self, left: int | None, rate: float, busy: list[ShardState]) -> float | None:
        samples, tokens = (
            sum(done[name] for done in self._done.values()) + sum(state.metric(name) for state in busy)
            for name in ("samples", "tokens")
        )
        if left == 0:
            return 0.0
        return None if left is None or not rate or not samples else left * tokens / samples / rate

    def _workers(self, states: Iterable[ShardState]) -> tuple[WorkerStatus, ...]:
        holding = {it.claim.worker: it for it in states if it.claim and it.condition in ("claimed", "lost")}
        done: dict[int, list[Mapping[str, Any]]] = {}
        for manifest in self._done.values():
            done.setdefault(manifest["worker"], []).append(manifest)
        return tuple(
            _worker_status(number, holding.get(number), done.get(number, [])) for number in sorted({*holding, *done})
        )


def _worker_status(number: int, holding: ShardState | None, done: list[Mapping[str, Any]]) -> WorkerStatus:
    claim = holding.claim if holding else None
    return WorkerStatus(
        worker=number,
        host=claim.host if claim else done[-1]["host"],
        shard=holding.shard.id if holding else None,
        condition=holding.condition if holding else None,
        tokens_per_second=holding.metric("tokens_per_second") if holding and holding.condition == "claimed" else 0.0,
        waiting_for=claim.metrics.get("waiting_for") if claim else None,
        heard_seconds_ago=None if holding is None or holding.heard is None else round(holding.heard, 1),
        shards_done=len(done),
        samples_done=sum(manifest["samples"] for manifest in done),
        tokens_done=sum(manifest["tokens"] for manifest in done),
    )


def describe_fleet(status: FleetStatus) -> str:
    """Return lines for the user."""
    counts = ", ".join(f"{len(shards)} {condition}" for condition, shards in status.shards.items())
    left = "?" if status.seconds_left is None else _describe_seconds(status.seconds_left)
    lines = [
        f"{sum(map(len, status.shards.values()))} shards: {counts}",
        f"{status.tokens_per_second:.0f} tokens/s, time left: {left}, takeovers: {status.takeovers}",
        f"{'worker':>6}  {'host':<20} {'shard':>6} {'state':<8}"
        f" {'tokens/s':>9} {'heard':>7} {'done':>5} {'tokens':>12}",
    ]
    for worker in status.workers:
        shard = "-" if worker.shard is None else worker.shard
        heard = "-" if worker.heard_seconds_ago is None else f"{worker.heard_seconds_ago:.0f} s"
        lines.append(
            f"{worker.worker:>6}  {worker.host[:20]:<20} {shard:>6} {worker.condition or 'idle':<8}"
            f" {worker.tokens_per_second:>9.0f} {heard:>7} {worker.shards_done:>5} {worker.tokens_done:>12}"
        )
    lines += [
        f"shard {shard}: is committed; the next worker will write its done-manifest" for shard in status.unsettled
    ]
    lines += [f"shard {shard} failed: {error}" for shard, error in status.failures.items()]
    return "\n".join(lines)


def _describe_seconds(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def free_shards(store: ObjectStore, shards: Iterable[DatasetShard], *, force: bool) -> int:
    """Free these shards; return how many were not free.

    Once nothing is claimed or done, the workers' agreed settings are deleted too. Raises UsageError
    at a shard that a worker is busy with, unless `force`.
    """
    freed = sum(_free(store, shard.name, force=force) for shard in shards)
    run = store.read(RUN)
    if run is not None and not _in_use(store) and store.delete_if(RUN, run.version) and _in_use(store):
        store.create(RUN, run.data)  # a worker with these settings has claimed a shard in the meantime
    return freed


def _in_use(store: ObjectStore) -> bool:
    return any(True for prefix in (CLAIMS, DONE) for _ in store.list(prefix))


def _free(store: ObjectStore, shard: str, *, force: bool) -> bool:
    seen = store.read(claim_name(shard))
    if seen is not None and not force:
        _require_idle(store, shard)
    done = store.read(done_name(shard))
    # The done-manifest first: a worker that sees neither may then take the shard.
    if done is not None:
        store.delete_if(done_name(shard), done.version)
    if seen is not None and not store.delete_if(claim_name(shard), seen.version):
        raise UsageError(f"dataset shard {shard}: its worker has just sent a heartbeat; try again")
    return seen is not None or done is not None


def _require_idle(store: ObjectStore, shard: str) -> None:
    try:
        found = read_claim(store, shard)
    except DamageError:
        return  # damaged: nobody can hold it
    if found is not None and found[1].state != "failed" and not has_run_out(store, *found):
        raise UsageError(
            f"dataset shard {shard}: worker {found[1].holder} is busy with it; stop that worker and wait"
            f" {found[1].seconds:.0f} s, or pass --force"
        )
