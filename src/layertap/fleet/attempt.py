"""One attempt at a dataset shard: a separate run by all hosts of a worker.

{place of the worker, or of its host}/shard_00003/{attempt}/
{the same}/shard_00003/{attempt}.ended

The place is below `--output_dir`, a folder (an uploaded copy has the same names) or a URL. If it is
a URL, a worker that is restarted on another machine finds its attempts there and resumes them.

A worker never resumes an attempt that has ended. Either the attempt was committed: if its shard is
free again, somebody reset it because its output was deleted or damaged, and the files in this place
prove nothing. Or it was damaged when a worker resumed it: the next start begins again.

A worker has one host, or the hosts of a slice. Host 0 leads: it alone claims, beats and commits,
and tells the others which attempt is next. Each host extracts its share of the shard into its own
folder (pipeline/hosts.py) and reports the outcome; the done-manifest names the files of all. If a
shard cannot be extracted, all hosts fail it together. If a host ends for another reason, all hosts
end, as in any run over several hosts. Then the shard is free once its lease has run out, and the
same slice resumes it at once when restarted. Hosts wait for the leader's next order in a
collective, as long as other workers are busy with the last shards.
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
"""The outcome of an attempt on one host: where the output is, its size, and its files."""


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
        """Find the unfinished attempts at these shards in this place, by the names of their shards.

        An attempt with the settings of another run does not count. It costs one check for each
        attempt, and one listing the first time.
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
        """Have all hosts extract a shard; return the outcome of each.

        Raises an InputError if the shard cannot be extracted on any host.
        """
        self.setup.hosts.exchange(json.dumps({"shard": shard.id, "attempt": attempt}))
        return self._extract(shard, attempt, watch)

    def dismiss(self) -> None:
        """Tell the other hosts that nothing is left."""
        self.setup.hosts.exchange(json.dumps({}))

    def follow(self, dataset: ShardedDataset, watch: Watch) -> int:
        """Extract the shards that the leader names until none is left; return how many."""
        shards = 0
        while order := json.loads(self.setup.hosts.exchange("{}")[0]):
            with suppress(HostsStoppedError):  # the leader has received it too, and reports it
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
