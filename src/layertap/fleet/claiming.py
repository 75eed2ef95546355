"""Which dataset shard is next for a worker.

In this order: the one that was preferred; those of which this worker has an unfinished attempt on its disk; free ones,
each worker in an order of its own, so that many workers that begin at once do not all ask for the same; and then those
whose holders were not heard of. A worker takes its own unfinished attempt over at once, without waiting for the lease
to run out: the lock on the worker's folder says that the process before it has ended.

While others are busy with what is left, the worker waits, and looks again each quarter of a lease: if one of them
dies, its shard is taken over, and a fleet that shrinks still finishes. One look is two listings of the dataset and one
of the worker's disk, however many shards there are; a claim is read only when it is older than a lease, or when there
is nothing else to do.
"""

import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from layertap.fleet.claims import CLAIMS, DONE, Claim, shard_of
from layertap.fleet.leases import Lease, has_run_out, read_claim, settle, take, take_over
from layertap.fleet.sharded import DatasetShard, ShardedDataset
from layertap.objects.base import ObjectInfo, ObjectStore


@dataclass(frozen=True)
class Taken:
    """A shard that this worker may extract."""

    shard: DatasetShard
    lease: Lease


class Claimer:
    """Takes shards for one worker."""

    def __init__(
        self,
        store: ObjectStore,
        dataset: ShardedDataset,
        claim_for: Callable[[str | None], Claim],
        unfinished: Callable[[Iterable[DatasetShard]], Mapping[str, str]],
        *,
        preferred: int | None = None,
        note: Callable[[str], None],
    ) -> None:
        self._store = store
        self._dataset = dataset
        self._claim_for = claim_for
        self._unfinished = unfinished
        self._preferred = preferred
        self._note = note
        self._failed: dict[str, str] = {}  # shard -> the version of its claim
        self._chance = random.Random()

    def next(self) -> Taken | None:
        """Take a shard, waiting while others may still give one up; None when all are done or failed."""
        closely = waiting = False
        while True:
            # Claims first: a shard that is committed in between is then in both lists, and not in neither.
            claims = {shard_of(info.name): info for info in self._store.list(CLAIMS)}
            done = {shard_of(info.name) for info in self._store.list(DONE)}
            left = [shard for shard in self._dataset.shards if shard.name not in done]
            unfinished = self._unfinished(left)
            for shard in self._in_order(left, claims, unfinished):
                attempt = unfinished.get(shard.name)
                lease = self._try(shard, claims.get(shard.name), attempt, closely=closely)
                if lease is not None:
                    return Taken(shard, lease)
            others = [shard for shard in left if shard.name not in self._failed]
            if not others:
                return None
            if not closely:  # at once, before any wait: what is left may have failed, or been given up
                closely = True
                continue
            if not waiting:
                self._note(f"no shard is free; waiting for the {len(others)} that others are busy with")
                waiting = True
            time.sleep(self._claim_for(None).seconds / 4)

    def _in_order(
        self, left: list[DatasetShard], claims: Mapping[str, ObjectInfo], unfinished: Mapping[str, str]
    ) -> list[DatasetShard]:
        self._chance.shuffle(left)
        return sorted(
            left,
            key=lambda shard: (shard.id != self._preferred, shard.name not in unfinished, shard.name in claims),
        )

    def _try(
        self, shard: DatasetShard, listed: ObjectInfo | None, attempt: str | None, *, closely: bool
    ) -> Lease | None:
        """Take the shard, going on in `attempt` where this worker has begun one."""
        claim = self._claim_for(attempt)
        if listed is None:
            return take(self._store, shard.name, claim)
        if self._failed.get(shard.name) == listed.version:
            return None
        recent = self._store.server_time() - listed.updated <= claim.seconds
        if recent and not closely and attempt is None:
            return None
        return self._try_claimed(shard, claim)

    def _try_claimed(self, shard: DatasetShard, claim: Claim) -> Lease | None:
        """Take the shard if its holder is an earlier process of this worker, or was not heard of; settle a commit."""
        found = read_claim(self._store, shard.name)
        if found is None:
            return take(self._store, shard.name, claim)
        seen, theirs = found
        if theirs.state == "failed":
            self._failed[shard.name] = seen.version
            self._note(f"{shard.name} failed, and is left out: {theirs.error}")
            return None
        if theirs.state == "committed":  # harmless where its holder is about to do the same
            settle(self._store, shard.name, theirs, seen.version)
            return None
        own = theirs.attempt == claim.attempt
        if not own and not has_run_out(self._store, seen, theirs):
            return None
        lost_by = theirs.lost_by if own else (*theirs.lost_by, theirs.holder)
        return take_over(self._store, shard.name, seen, replace(claim, lost_by=lost_by))

    @property
    def failed(self) -> list[str]:
        """The shards that were found to have failed."""
        return sorted(self._failed)
