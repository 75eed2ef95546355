"""One attempt at a dataset shard: a run of its own, by all hosts of a worker.

{place of the worker, or of its host}/shard_00003/{attempt}/
{the same}/shard_00003/{attempt}.ended

The place is below `--output_dir`, a folder (an uploaded copy has the same names) or a URL. Where it
is a URL, a worker that was started on another machine finds its attempts there, and goes on.

A worker never goes on in an attempt that has ended. Either it was committed: if its shard is free
again, it was reset because its output was deleted or damaged somewhere, and the files on this disk
prove nothing. Or it was found damaged when a worker went on in it: the next start begins again.

A worker has one host, or the hosts of a slice. Host 0 leads: it alone claims, beats and commits. It
tells the others which attempt is next. Each host extracts its share of the shard into its own
folder (pipeline/hosts.py) and says what came of it, and the done-manifest names the files of all.
All fail a shard together if it cannot be extracted as things are. Any other end of a host ends all,
as in any run over several hosts: the shard is free once its lease has run out, and the same slice,
started again, goes on in it at once. Hosts wait for the leader's next word in a collective, for as
long as other workers are busy with the last shards.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from layertap.errors import DamageError, HostsStoppedError
from layertap.fleet.sharded import DatasetShard, ShardedDataset, read_shard
from layertap.objects import open_store
from layertap.objects.base import OWNED, ObjectStore
from layertap.objects.content import MemoryContent
from layertap.objects.files import atomic_write, crc32c_of
from layertap.pipeline.progress import RunSummary, Watch
from layertap.pipeline.run import extract_prepared
from layertap.pipeline.session import Session
from layertap.pipeline.setup import Part, Setup, for_part
from layertap.shards.manifest import FILE_NAME
from layertap.shards.manifest_files import load_manifest, read_head

_ENDED = ".ended"

Outcome = Mapping[str, Any]
"""What came of an attempt on one host: where the output is, how much, and each file of it."""


@dataclass(frozen=True)
class Attempts:
    """Attempts at the dataset shards of `store`, by this host, in `place`; the records of the shard
    at hand are in the folder `scratch`.
    """

    setup: Setup
    store: ObjectStore
    place: ObjectStore
    scratch: Path
    session: Session

    def find_unfinished(self, shards: Iterable[DatasetShard]) -> dict[str, str]:
        """The unfinished attempts at these shards in this place, by the names of their shards.

        An attempt with the settings of another run does not count. Costs a look at each, and the
        first time one listing.
        """
        found = {}
        for shard in shards:
            for attempt in sorted(self._unfinished.get(shard.name, ())):
                if self._has_same_settings(shard, attempt):
                    found[shard.name] = attempt
                    break
        return found

    @cached_property
    def _unfinished(self) -> dict[str, set[str]]:
        """The attempts that have not ended, by shard. Nobody else writes here, so it is listed
        once.
        """
        begun, ended = defaultdict[str, set[str]](set), set()
        for info in self.place.list("shard_"):
            shard, _, rest = info.name.partition("/")
            attempt, below, _ = rest.partition("/")
            if below:
                begun[shard].add(attempt)
            elif attempt.endswith(_ENDED):
                ended.add((shard, attempt.removesuffix(_ENDED)))
        for shard, attempt in ended:
            begun[shard].discard(attempt)
        return begun

    def end(self, shard: DatasetShard, attempt: str) -> None:
        """Remember that an attempt was committed, or is damaged; raises StorageError."""
        self.place.put(f"{shard.name}/{attempt}{_ENDED}", MemoryContent([b""]), replaces=OWNED)
        self._unfinished[shard.name].discard(attempt)

    def lead(self, shard: DatasetShard, attempt: str, watch: Watch) -> list[Outcome]:
        """Have all hosts extract a shard; what came of it on each.

        Raises an InputError if the shard cannot be extracted as things are, on any host.
        """
        self.setup.hosts.exchange(json.dumps({"shard": shard.id, "attempt": attempt}))
        return self._extract(shard, attempt, watch)

    def dismiss(self) -> None:
        """Tell the other hosts that nothing is left."""
        self.setup.hosts.exchange(json.dumps({}))

    def follow(self, dataset: ShardedDataset, watch: Watch) -> int:
        """Extract what the leader says until nothing is left; how many shards that were."""
        shards = 0
        while order := json.loads(self.setup.hosts.exchange("{}")[0]):
            with suppress(HostsStoppedError):  # the leader has heard it too, and says so
                self._extract(dataset.shard(order["shard"]), order["attempt"], watch)
                shards += 1
        return shards

    def _extract(self, shard: DatasetShard, attempt: str, watch: Watch) -> list[Outcome]:
        part, exchange = self._part(shard, attempt), self.setup.hosts.exchange
        trouble = ""
        try:
            records = read_shard(self.store, shard)
        except DamageError as error:
            trouble = str(error)
        if troubles := [said for said in exchange(trouble) if said]:
            raise HostsStoppedError(troubles[0])
        with atomic_write(Path(part.dataset_path)) as file:
            file.write(records)
        self._unfinished[shard.name].add(attempt)
        summary = extract_prepared(for_part(self.setup, part), self.session, watch)
        return [json.loads(said) for said in exchange(json.dumps(_outcome(part, summary)))]

    def _part(self, shard: DatasetShard, attempt: str) -> Part:
        below, url = f"{shard.name}/{attempt}", self.setup.upload_url
        maker = self.setup.prompts.maker
        return Part(
            name=shard.name,
            dataset_path=str(self.scratch / "tasks.jsonl"),
            first_sample_idx=shard.first_sample(maker.predictions_per_task, maker.numbers_per_text),
            output_dir=f"{self.place.url}/{below}",
            upload_url=None if url is None else f"{url}/{below}",
        )

    def _has_same_settings(self, shard: DatasetShard, attempt: str) -> bool:
        found = load_manifest(self.place.below(f"{shard.name}/{attempt}"))
        expected = for_part(self.setup, self._part(shard, attempt)).manifest.fingerprint
        return found is None or found.fingerprint == expected


def _outcome(part: Part, summary: RunSummary) -> Outcome:
    manifest = summary.manifest
    with closing(open_store(part.output_dir)) as output:
        head = read_head(output)
    return {
        "output": part.upload_url or _absolute(part.output_dir),
        "fingerprint": manifest.fingerprint,
        "samples": manifest.samples,
        "tokens": manifest.tokens,
        "manifest": {"path": FILE_NAME, "bytes": len(head), "crc32c": crc32c_of([head])},
        "files": [asdict(file) for entry in manifest.shards for file in entry.files],
    }


def _absolute(place: str) -> str:
    return place if "://" in place else str(Path(place).resolve())
