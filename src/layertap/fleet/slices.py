"""The hosts of one slice as one worker on a sharded dataset.

Host 0 leads: it alone claims shards, beats, and commits. It tells the others which attempt at which shard is next; each
extracts its own share of the shard into its own folder (extract/hosts.py) and says what came of it; the done-manifest
names the files of all hosts. A shard that cannot be extracted as things are is failed by all together. Whatever else
ends one host ends all, as in any run over several hosts: the shard is then free once its lease has run out, and the
same slice, started again, goes on in it at once.

A host that waits for the leader's next word waits in a collective, for as long as other workers keep the last shards
busy.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from layertap.errors import DatasetError, HostsStoppedError
from layertap.extract.hosts import Hosts
from layertap.extract.progress import Watch
from layertap.extract.run import extract_prepared
from layertap.extract.session import Session
from layertap.extract.setup import for_part
from layertap.fleet.parts import Parts, outcome
from layertap.fleet.sharded import DatasetShard, ShardedDataset

Outcome = Mapping[str, Any]


@dataclass(frozen=True)
class Slice:
    """One host of a worker that has one or several."""

    hosts: Hosts
    parts: Parts
    session: Session

    def lead(self, shard: DatasetShard, attempt: str, watch: Watch) -> list[Outcome]:
        """Have all hosts extract a shard; what came of it on each.

        Raises an InputError where the shard cannot be extracted as things are, on this host or another.
        """
        self.hosts.exchange(json.dumps({"shard": shard.id, "attempt": attempt}))
        return self._extract(shard, attempt, watch)

    def dismiss(self) -> None:
        """Tell the others that nothing is left."""
        self.hosts.exchange(json.dumps({}))

    def follow(self, dataset: ShardedDataset, watch: Watch) -> int:
        """Extract what the leader says until nothing is left; how many shards that were."""
        shards = 0
        while order := json.loads(self.hosts.exchange("{}")[0]):
            with suppress(HostsStoppedError):  # the leader has heard it too, and says so
                self._extract(dataset.shard(order["shard"]), order["attempt"], watch)
                shards += 1
        return shards

    def _extract(self, shard: DatasetShard, attempt: str, watch: Watch) -> list[Outcome]:
        part = self.parts.part(shard, attempt)
        trouble = ""
        try:
            self.parts.place_records(shard, part)
        except DatasetError as error:
            trouble = str(error)
        if troubles := [said for said in self.hosts.exchange(trouble) if said]:
            raise HostsStoppedError(troubles[0])
        summary = extract_prepared(for_part(self.parts.setup, part), self.session, watch)
        return [json.loads(said) for said in self.hosts.exchange(json.dumps(outcome(part, summary)))]
