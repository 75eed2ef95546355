"""One attempt at a dataset shard: a run of its own, by all hosts of a worker.

{folder of the worker, or of its host}/shard_00003/tasks.jsonl
{the same}/shard_00003/{attempt}/        and the same below the bucket's prefix
{the same}/shard_00003/{attempt}.ended

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
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from layertap.errors import DamageError, HostsStoppedError
from layertap.fleet.sharded import DatasetShard, ShardedDataset, read_shard
from layertap.objects import open_store
from layertap.objects.base import ObjectStore
from layertap.objects.files import atomic_write, file_crc32c
from layertap.pipeline.progress import RunSummary, Watch
from layertap.pipeline.run import extract_prepared
from layertap.pipeline.session import Session
from layertap.pipeline.setup import Part, Setup, for_part
from layertap.shards.manifest import FILE_NAME
from layertap.shards.manifest_files import load_manifest

Outcome = Mapping[str, Any]
"""What came of an attempt on one host: where the output is, how much, and each file of it."""


@dataclass(frozen=True)
class Attempts:
    """Attempts at the dataset shards of `store`, by this host, below `folder`."""

    setup: Setup
    store: ObjectStore
    folder: Path
    session: Session

    def find_unfinished(self, shards: Iterable[DatasetShard]) -> dict[str, str]:
        """The unfinished attempts at these shards on this disk, by the names of their shards.

        An attempt with the settings of another run does not count. Costs one listing, and a look at
        each shard that has a folder here.
        """
        there = {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else set()
        found = {}
        for shard in (shard for shard in shards if shard.name in there):
            for folder in sorted(path for path in (self.folder / shard.name).iterdir() if path.is_dir()):
                if not self._ended(shard, folder.name).exists() and self._has_same_settings(shard, folder.name):
                    found[shard.name] = folder.name
                    break
        return found

    def end(self, shard: DatasetShard, attempt: str) -> None:
        """Remember that an attempt was committed, or is damaged; raises StorageError."""
        with atomic_write(self._ended(shard, attempt)):
            pass

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
        part.output_dir.mkdir(parents=True, exist_ok=True)
        with atomic_write(Path(part.dataset_path)) as file:
            file.write(records)
        summary = extract_prepared(for_part(self.setup, part), self.session, watch)
        return [json.loads(said) for said in exchange(json.dumps(_outcome(part, summary)))]

    def _part(self, shard: DatasetShard, attempt: str) -> Part:
        below, url = f"{shard.name}/{attempt}", self.setup.upload_url
        maker = self.setup.prompts.maker
        return Part(
            name=shard.name,
            dataset_path=str(self.folder / shard.name / "tasks.jsonl"),
            first_sample_idx=shard.first_sample(maker.predictions_per_task, maker.numbers_per_text),
            output_dir=self.folder / below,
            upload_url=None if url is None else f"{url}/{below}",
        )

    def _ended(self, shard: DatasetShard, attempt: str) -> Path:
        return self.folder / shard.name / f"{attempt}.ended"

    def _has_same_settings(self, shard: DatasetShard, attempt: str) -> bool:
        part = self._part(shard, attempt)
        found = load_manifest(open_store(str(part.output_dir)))
        return found is None or found.fingerprint == for_part(self.setup, part).manifest.fingerprint


def _outcome(part: Part, summary: RunSummary) -> Outcome:
    manifest, path = summary.manifest, part.output_dir / FILE_NAME
    return {
        "output": part.upload_url or str(part.output_dir.resolve()),
        "fingerprint": manifest.fingerprint,
        "samples": manifest.samples,
        "tokens": manifest.tokens,
        "manifest": {"path": FILE_NAME, "bytes": path.stat().st_size, "crc32c": file_crc32c(path)},
        "files": [asdict(file) for entry in manifest.shards for file in entry.files],
    }
