"""How far the shards of a dataset are, by their claims and done-manifests; how to free some."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from layertap.errors import DamageError, UsageError
from layertap.fleet.claims import CLAIMS, DONE, Claim, claim_name, done_name, has_run_out, read_claim, shard_of
from layertap.fleet.sharded import RUN, DatasetShard, ShardedDataset
from layertap.objects.base import ObjectStore

Condition = Literal["free", "claimed", "lost", "failed", "done"]

_READERS = 16


@dataclass(frozen=True)
class ShardState:
    """One shard at one moment."""

    shard: DatasetShard
    condition: Condition
    """lost: the holder was silent for the length of its lease; the next worker takes it over."""
    claim: Claim | None = None
    heard: float | None = None
    """Seconds since the claim was last written."""

    def metric(self, name: str) -> float:
        """What the holder said with its last heartbeat; 0 if it said nothing of it."""
        return self.claim.metrics.get(name, 0) if self.claim else 0


def shard_states(store: ObjectStore, dataset: ShardedDataset) -> list[ShardState]:
    """The state of every shard; costs two listings, and a read for each claimed shard."""
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
    """The done-manifest of a shard; raises DamageError if it is garbled."""
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


def read_all_done(store: ObjectStore, shards: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """The done-manifests of these shards, without those that were deleted meanwhile."""
    with ThreadPoolExecutor(_READERS) as pool:
        found = pool.map(partial(read_done, store), shards)
        return {shard: done for shard, done in zip(shards, found, strict=True) if done is not None}


def describe_conditions(counts: Mapping[Condition, int]) -> str:
    """A line for a person: how many shards are in which condition."""
    shown: tuple[Condition, ...] = ("done", "claimed", "lost", "failed", "free")
    return f"{sum(counts.values())} shards: " + ", ".join(f"{counts.get(name, 0)} {name}" for name in shown)


def describe_states(states: Sequence[ShardState]) -> str:
    """Lines for a person: the counts, and each shard that has a claim."""
    lines = [describe_conditions(Counter(state.condition for state in states))]
    for state in states:
        claim = state.claim
        if claim is not None:
            about = f": {claim.error}" if claim.error else f", last heard {state.heard:.0f} s ago"
            about += "; it has committed, and the next worker that looks writes that down" if claim.done else ""
            lines.append(f"  {state.shard.id:>5}  {state.condition:<8} worker {claim.holder}{about}")
    return "\n".join(lines)


def states_to_json(states: Iterable[ShardState]) -> list[dict[str, Any]]:
    """Every shard, for a program."""
    return [
        {
            "id": state.shard.id,
            "condition": state.condition,
            "worker": state.claim.worker if state.claim else None,
            "host": state.claim.host if state.claim else None,
            "heard_seconds_ago": state.heard,
            "lost_by": list(state.claim.lost_by) if state.claim else [],
            "error": state.claim.error if state.claim else None,
        }
        for state in states
    ]


def free_shards(store: ObjectStore, shards: Iterable[DatasetShard], *, force: bool) -> int:
    """Make these shards free; how many were not.

    Once nothing is claimed or done, what workers agreed to extract is forgotten too. Raises
    UsageError at a shard that a worker is busy with, unless `force`.
    """
    freed = sum(_free(store, shard.name, force=force) for shard in shards)
    run = store.read(RUN)
    if run is not None and not _in_use(store) and store.delete_if(RUN, run.version) and _in_use(store):
        store.create(RUN, run.data)  # a worker that had agreed on it has claimed a shard meanwhile
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
        raise UsageError(f"dataset shard {shard}: its worker was heard of just now; try again")
    return seen is not None or done is not None


def _require_idle(store: ObjectStore, shard: str) -> None:
    try:
        found = read_claim(store, shard)
    except DamageError:
        return  # garbled: nobody can hold it
    if found is not None and found[1].state != "failed" and not has_run_out(store, *found):
        raise UsageError(
            f"dataset shard {shard}: worker {found[1].holder} is busy with it; stop that worker and wait for"
            f" {found[1].seconds:.0f} s, or pass --force"
        )
