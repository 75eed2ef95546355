"""`layertap fleet status`: who works on what, how fast, and when it will be done.

All of it comes from the sharded dataset: from claims, which heartbeats keep current, and from
done-manifests. No worker is asked and no service has to run, so it works from any machine that may
read the bucket. A done-manifest never changes, so `--watch` reads each once.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from layertap.core.strict_json import dump_json
from layertap.errors import DamageError
from layertap.fleet.sharded import RUN, ShardedDataset
from layertap.fleet.standing import Condition, ShardState, describe_conditions, read_all_done, shard_states
from layertap.objects.base import ObjectStore


@dataclass(frozen=True)
class WorkerStatus:
    """One worker."""

    worker: int
    host: str
    shard: int | None
    """The dataset shard that it has."""
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

    shards: Mapping[Condition, int]
    samples_left: int | None
    """None before any worker has begun: only workers know how many prompts a task gives."""
    tokens_per_second: float
    """Of all workers that are heard of."""
    seconds_left: float | None
    """None if nobody works, or the speed is unknown yet."""
    takeovers: int
    """How often a shard was taken over from a silent worker."""
    failures: Mapping[int, str]
    """Dataset shards that failed, and why."""
    workers: tuple[WorkerStatus, ...]

    @property
    def ended(self) -> bool:
        """Whether every shard is done or failed."""
        return set(self.shards) <= {"done", "failed"}

    def to_json(self) -> str:
        """Everything, for a program."""
        return dump_json(asdict(self), indent=1)


class FleetWatch:
    """Reads the status of a fleet, as often as you ask."""

    def __init__(self, store: ObjectStore, dataset: ShardedDataset) -> None:
        self._store = store
        self._dataset = dataset
        self._done: dict[str, Mapping[str, Any]] = {}

    def read_status(self) -> FleetStatus:
        """The fleet now."""
        states = shard_states(self._store, self._dataset)
        self._read_done([state.shard.name for state in states if state.condition == "done"])
        busy = [state for state in states if state.condition == "claimed"]
        claims = [(state.shard.id, state.claim) for state in states if state.claim]
        rate = sum(state.metric("tokens_per_second") for state in busy)
        left = self._samples_left(states)
        return FleetStatus(
            shards=dict(Counter(state.condition for state in states)),  # asdict would take a Counter apart
            samples_left=left,
            tokens_per_second=rate,
            seconds_left=self._seconds_left(left, rate, busy),
            takeovers=sum(len(done["lost_by"]) for done in self._done.values())
            + sum(len(claim.lost_by) for _, claim in claims),
            failures={shard: claim.error for shard, claim in claims if claim.error},
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
            raise DamageError(f"{self._store.url}/{RUN}: is not what workers write ({error!r})") from error
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
    """Lines for a person."""
    left = "?" if status.seconds_left is None else _describe_seconds(status.seconds_left)
    lines = [
        describe_conditions(status.shards),
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
    lines += [f"shard {shard} failed: {error}" for shard, error in status.failures.items()]
    return "\n".join(lines)


def _describe_seconds(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
