"""Choose the dataset shard that a worker takes next.

The order is: the preferred shard; shards with an unfinished attempt on this worker's disk; free
shards, in random order, so that workers that start together ask for different ones; and shards
whose holders have been silent for the length of their lease. A worker takes over its own unfinished
attempt at once: it holds the lock on its folder, so its earlier process has ended.

While others are busy with the rest, the worker waits, and checks every quarter of a lease. If one
of them dies, its shard is taken over, so a shrinking fleet still finishes. A check costs two
listings of the dataset and one of the worker's disk, for any number of shards. A claim is read only
if it is older than a lease, or if nothing else is left to do.
"""

import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from layertap.fleet.claims import (
    CLAIMS,
    DONE,
    Claim,
    Lease,
    has_run_out,
    read_claim,
    settle,
    shard_of,
    take,
    take_over,
)
from layertap.fleet.sharded import DatasetShard, ShardedDataset
from layertap.objects.base import ObjectInfo, ObjectStore


@dataclass(frozen=True)
class Claimer:
    """Takes shards for one worker."""

    store: ObjectStore
    dataset: ShardedDataset
    make_claim: Callable[[str | None], Claim]
    """Makes a claim that resumes an unfinished attempt, or begins a new one."""
    find_unfinished: Callable[[Iterable[DatasetShard]], Mapping[str, str]]
    """Finds unfinished attempts on this worker's disk, by the names of their shards."""
    note: Callable[[str], None]
    preferred: int | None = None
    failed: dict[str, str] = field(default_factory=dict)
    """Failed shards, with the versions of their claims."""

    def take_next(self) -> tuple[DatasetShard, Lease] | None:
        """Take a shard; waits while others may give one up. None if all are done or failed."""
        closely = waiting = False
        while True:
            # Claims first: a shard that is committed in between is then in both lists, not in none.
            claims = {shard_of(info.name): info for info in self.store.list(CLAIMS)}
            done = {shard_of(info.name) for info in self.store.list(DONE)}
            left = [shard for shard in self.dataset.shards if shard.name not in done]
            unfinished = self.find_unfinished(left)
            random.shuffle(left)
            left.sort(key=lambda it: (it.id != self.preferred, it.name not in unfinished, it.name in claims))
            for shard in left:
                lease = self._try(shard, claims.get(shard.name), unfinished.get(shard.name), closely=closely)
                if lease is not None:
                    return shard, lease
            others = [shard for shard in left if shard.name not in self.failed]
            if not others:
                return None
            if not closely:  # at once, without waiting: the other shards may have failed or been given up
                closely = True
                continue
            if not waiting:
                self.note(f"no shard is free; waiting for {len(others)} shards that other workers have")
                waiting = True
            time.sleep(self.make_claim(None).seconds / 4)

    def _try(
        self, shard: DatasetShard, listed: ObjectInfo | None, attempt: str | None, *, closely: bool
    ) -> Lease | None:
        """Take the shard, and resume `attempt` if this worker has begun one."""
        claim = self.make_claim(attempt)
        if listed is None:
            return take(self.store, shard.name, claim)
        if self.failed.get(shard.name) == listed.version:
            return None
        recent = self.store.server_time() - listed.updated <= claim.seconds
        if recent and not closely and attempt is None:
            return None
        return self._try_claimed(shard, claim)

    def _try_claimed(self, shard: DatasetShard, claim: Claim) -> Lease | None:
        """Take the shard if its holder is silent or was this worker; settle a commit."""
        found = read_claim(self.store, shard.name)
        if found is None:
            return take(self.store, shard.name, claim)
        seen, theirs = found
        if theirs.state == "failed":
            self.failed[shard.name] = seen.version
            self.note(f"{shard.name} failed, and is left out: {theirs.error}")
            return None
        if theirs.state == "committed":  # harmless if its holder is about to do the same
            settle(self.store, shard.name, theirs, seen.version)
            return None
        own = theirs.attempt == claim.attempt
        if not own and not has_run_out(self.store, seen, theirs):
            return None
        lost_by = theirs.lost_by if own else (*theirs.lost_by, theirs.holder)
        return take_over(self.store, shard.name, seen, replace(claim, lost_by=lost_by))
