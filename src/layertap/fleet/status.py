"""`layertap fleet status`: who works on what, how fast, and when it will be done.

All of it is read from the sharded dataset: claims, which the workers' heartbeats keep true, and done-manifests. Nobody
is asked, nothing has to run for it, and it works from any machine that may read the bucket. A done-manifest never
changes, so `--watch` reads each once.
"""

import json
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from layertap.errors import DamageError
from layertap.fleet.sharded import RUN, ShardedDataset
from layertap.fleet.standing import Condition, Standing, look, read_done
from layertap.objects.base import ObjectStore

_READERS = 16


@dataclass(frozen=True)
class WorkerStatus:
    """One worker."""

    worker: int
    host: str
    shard: int | None
    """The dataset shard that it has; None where it has none."""
    condition: Condition | None
    """claimed, or lost where it was not heard of for as long as its lease runs."""
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
    """None where no worker has begun yet: how many prompts a task gives is not known then."""
    tokens_per_second: float
    """Of all workers that are heard of."""
    seconds_left: float | None
    """None where nobody works, or nothing is known of the speed yet."""
    takeovers: int
    """How often a shard was taken over from a worker that was not heard of."""
    failures: Mapping[int, str]
    """Dataset shards that failed, and why."""
    workers: tuple[WorkerStatus, ...]

    @property
    def ended(self) -> bool:
        """Whether every shard is done or failed."""
        return sum(self.shards.values()) == self.shards.get("done", 0) + self.shards.get("failed", 0)

    def as_json(self) -> str:
        """Everything, for a program."""
        return json.dumps(asdict(self), indent=1)


class FleetWatch:
    """Looks at a fleet, as often as it is asked."""

    def __init__(self, store: ObjectStore, dataset: ShardedDataset) -> None:
        self._store = store
        self._dataset = dataset
        self._done: dict[str, Mapping[str, Any]] = {}

    def look(self) -> FleetStatus:
        """The fleet now."""
        standings = look(self._store, self._dataset)
        self._read_done([one.shard.name for one in standings if one.condition == "done"])
        busy = [one for one in standings if one.condition == "claimed"]
        rate = sum(_rate(one) for one in busy)
        left = self._samples_left(standings)
        return FleetStatus(
            shards=dict(Counter(one.condition for one in standings)),  # asdict would take a Counter apart
            samples_left=left,
            tokens_per_second=rate,
            seconds_left=self._seconds_left(left, rate, busy),
            takeovers=sum(len(done["lost_by"]) for done in self._done.values())
            + sum(len(one.claim.lost_by) for one in standings if one.claim),
            failures={one.shard.id: one.claim.error or "" for one in standings if one.claim and one.claim.error},
            workers=self._workers(standings),
        )

    def _read_done(self, names: list[str]) -> None:
        new = [name for name in names if name not in self._done]
        with ThreadPoolExecutor(_READERS) as pool:
            found = zip(new, pool.map(partial(read_done, self._store), new), strict=True)
            self._done.update({name: done for name, done in found if done is not None})
        for gone in self._done.keys() - set(names):  # reset meanwhile
            del self._done[gone]

    def _samples_left(self, standings: list[Standing]) -> int | None:
        predictions = self._predictions()
        if predictions is None:
            return None
        waiting = (one for one in standings if one.condition not in ("done", "failed"))
        return sum(max(0, one.shard.samples(predictions) - _metric(one, "samples")) for one in waiting)

    def _predictions(self) -> int | None:
        run = self._store.read(RUN)
        if run is None:
            return None
        try:
            return int(json.loads(run.data)["prompts"]["predictions_per_task"])
        except (ValueError, KeyError, TypeError) as error:
            raise DamageError(f"{self._store.url}/{RUN}: is not what workers write ({error!r})") from error

    def _seconds_left(self, left: int | None, rate: float, busy: list[Standing]) -> float | None:
        samples = sum(done["samples"] for done in self._done.values()) + sum(_metric(one, "samples") for one in busy)
        tokens = sum(done["tokens"] for done in self._done.values()) + sum(_metric(one, "tokens") for one in busy)
        if left == 0:
            return 0.0
        return None if left is None or not rate or not samples else left * tokens / samples / rate

    def _workers(self, standings: list[Standing]) -> tuple[WorkerStatus, ...]:
        holding = {one.claim.worker: one for one in standings if one.claim and one.condition in ("claimed", "lost")}
        done: dict[int, list[Mapping[str, Any]]] = {}
        for manifest in self._done.values():
            done.setdefault(manifest["worker"], []).append(manifest)
        return tuple(_worker(number, holding.get(number), done.get(number, [])) for number in sorted({*holding, *done}))


def describe(status: FleetStatus) -> str:
    """Lines for a person."""
    counts = ", ".join(f"{status.shards.get(name, 0)} {name}" for name in ("done", "claimed", "lost", "failed", "free"))
    left = "?" if status.seconds_left is None else _span(status.seconds_left)
    lines = [
        f"{sum(status.shards.values())} shards: {counts}",
        f"{status.tokens_per_second:.0f} tokens/s, time left: {left}, takeovers: {status.takeovers}",
        f"{'worker':>6}  {'host':<20} {'shard':>6} {'state':<8}"
        f" {'tokens/s':>9} {'heard':>7} {'done':>5} {'tokens':>12}",
    ]
    lines += [_line(worker) for worker in status.workers]
    lines += [f"shard {shard} failed: {error}" for shard, error in status.failures.items()]
    return "\n".join(lines)


def _line(worker: WorkerStatus) -> str:
    shard = "-" if worker.shard is None else str(worker.shard)
    heard = "-" if worker.heard_seconds_ago is None else f"{worker.heard_seconds_ago:.0f} s"
    return (
        f"{worker.worker:>6}  {worker.host[:20]:<20} {shard:>6} {worker.condition or 'idle':<8}"
        f" {worker.tokens_per_second:>9.0f} {heard:>7} {worker.shards_done:>5} {worker.tokens_done:>12}"
    )


def _worker(number: int, holding: Standing | None, done: list[Mapping[str, Any]]) -> WorkerStatus:
    claim = holding.claim if holding else None
    return WorkerStatus(
        worker=number,
        host=claim.host if claim else done[-1]["host"],
        shard=holding.shard.id if holding else None,
        condition=holding.condition if holding else None,
        tokens_per_second=_rate(holding) if holding and holding.condition == "claimed" else 0.0,
        waiting_for=claim.metrics.get("waiting_for") if claim else None,
        heard_seconds_ago=None if holding is None or holding.heard is None else round(holding.heard, 1),
        shards_done=len(done),
        samples_done=sum(manifest["samples"] for manifest in done),
        tokens_done=sum(manifest["tokens"] for manifest in done),
    )


def _rate(standing: Standing) -> float:
    return float(standing.claim.metrics.get("tokens_per_second", 0.0)) if standing.claim else 0.0


def _metric(standing: Standing, name: str) -> int:
    return int(standing.claim.metrics.get(name, 0)) if standing.claim else 0


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
