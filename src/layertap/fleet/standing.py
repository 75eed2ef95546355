"""How far the shards of a dataset are, from what lies there alone; and making some free again."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from layertap.errors import DamageError, UsageError
from layertap.fleet.claims import CLAIMS, DONE, Claim, claim_name, done_name, shard_of
from layertap.fleet.leases import has_run_out, read_claim
from layertap.fleet.sharded import RUN, DatasetShard, ShardedDataset
from layertap.objects.base import ObjectStore

Condition = Literal["free", "claimed", "lost", "failed", "done"]
CONDITIONS: tuple[Condition, ...] = ("done", "claimed", "lost", "failed", "free")

_READERS = 16


@dataclass(frozen=True)
class Standing:
    """One shard at one moment."""

    shard: DatasetShard
    condition: Condition
    """lost: the holder was not heard of for as long as its lease runs; the next worker that looks takes it over."""
    claim: Claim | None = None
    heard: float | None = None
    """Seconds since the claim was last written."""


def look(store: ObjectStore, dataset: ShardedDataset) -> list[Standing]:
    """Every shard of `dataset`; two listings, and a read for each shard that is claimed."""
    # Claims first: a shard that is committed in between is then in both lists, and not in neither.
    claimed = {shard_of(info.name) for info in store.list(CLAIMS)}
    done = {shard_of(info.name) for info in store.list(DONE)}
    open_ones = [shard for shard in dataset.shards if shard.name in claimed - done]
    with ThreadPoolExecutor(_READERS) as pool:
        found = pool.map(partial(_standing_of, store), open_ones)
        standings = {standing.shard.id: standing for standing in found}
    return [
        Standing(shard, "done") if shard.name in done else standings.get(shard.id, Standing(shard, "free"))
        for shard in dataset.shards
    ]


def _standing_of(store: ObjectStore, shard: DatasetShard) -> Standing:
    found = read_claim(store, shard.name)
    if found is None:
        return Standing(shard, "free")
    seen, claim = found
    heard = max(0.0, store.server_time() - seen.updated)
    if claim.state == "failed":
        return Standing(shard, "failed", claim, heard)
    return Standing(shard, "lost" if has_run_out(store, seen, claim) else "claimed", claim, heard)


def read_done(store: ObjectStore, shard: str) -> Mapping[str, Any] | None:
    """The done-manifest of a shard; raises DamageError where it is garbled."""
    found = store.read(done_name(shard))
    if found is None:
        return None
    try:
        done = json.loads(found.data)
        if done["shard"] != shard:
            raise ValueError(f"is of {done['shard']}")
    except (ValueError, KeyError, TypeError) as error:
        raise DamageError(
            f"{store.url}/{done_name(shard)}: is no done-manifest ({error!r}); reset the shard"
        ) from error
    return done


def describe(standings: Iterable[Standing]) -> str:
    """Lines for a person: how many shards are in which condition, and which those are that need a look."""
    standings = list(standings)
    counts = Counter(standing.condition for standing in standings)
    lines = [f"{len(standings)} shards: " + ", ".join(f"{counts[name]} {name}" for name in CONDITIONS)]
    for standing in standings:
        shard, claim = standing.shard, standing.claim
        if claim is not None:
            about = f": {claim.error}" if claim.error else f", last heard {standing.heard:.0f} s ago"
            about += "; it has committed, and the next worker that looks writes that down" if claim.done else ""
            lines.append(f"  {shard.id:>5}  {standing.condition:<8} worker {claim.holder}{about}")
    return "\n".join(lines)


def as_json(standings: Iterable[Standing]) -> list[dict[str, Any]]:
    """Every shard, for a program."""
    return [
        {
            "id": standing.shard.id,
            "condition": standing.condition,
            "worker": standing.claim.worker if standing.claim else None,
            "host": standing.claim.host if standing.claim else None,
            "heard_seconds_ago": standing.heard,
            "lost_by": list(standing.claim.lost_by) if standing.claim else [],
            "error": standing.claim.error if standing.claim else None,
        }
        for standing in standings
    ]


def reset(store: ObjectStore, shards: Iterable[DatasetShard], *, force: bool) -> int:
    """Make these shards free; how many were not. Raises UsageError at one that a worker is busy with, unless `force`.

    When nothing is claimed or done any more, what workers agreed to extract is forgotten too.
    """
    freed = sum(_reset_one(store, shard.name, force=force) for shard in shards)
    run = store.read(RUN)
    if run is not None and not _in_use(store) and store.delete_if(RUN, run.version) and _in_use(store):
        store.create(RUN, run.data)  # a worker that had agreed on it has claimed a shard meanwhile
    return freed


def _in_use(store: ObjectStore) -> bool:
    return any(True for prefix in (CLAIMS, DONE) for _ in store.list(prefix))


def _reset_one(store: ObjectStore, shard: str, *, force: bool) -> bool:
    seen = store.read(claim_name(shard))
    if seen is not None and not force:
        _require_idle(store, shard)
    done = store.read(done_name(shard))
    # The done-manifest first: a worker that sees neither may then take the shard.
    if done is not None:
        store.delete_if(done_name(shard), done.version)
    if seen is not None and not store.delete_if(claim_name(shard), seen.version):
        raise UsageError(f"dataset shard {shard}: its worker was heard of just now; try again")
    return seen is not None or done is not None


def _require_idle(store: ObjectStore, shard: str) -> None:
    try:
        found = read_claim(store, shard)
    except DamageError:
        return  # garbled: nobody can be holding it
    if found is not None and found[1].state != "failed" and not has_run_out(store, *found):
        raise UsageError(
            f"dataset shard {shard}: worker {found[1].holder} is busy with it; stop that worker and wait for"
            f" {found[1].seconds:.0f} s, or pass --force"
        )
