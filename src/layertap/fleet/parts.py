"""One dataset shard as a run of its own: its records and its output on this worker's disk.

{folder of the worker, or of its host}/shard_00003/tasks.jsonl
{the same}/shard_00003/{attempt}/        and the same below the bucket's prefix
{the same}/shard_00003/{attempt}.ended

An attempt that has ended is never gone on with. Either it was committed; if its shard is free once more, it was reset,
because its output was deleted or found damaged somewhere, and what this disk says of it proves nothing. Or what it had
was found damaged when a worker went on in it; the next start begins anew.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from layertap.errors import DamageError, DatasetError
from layertap.extract.run import RunSummary
from layertap.extract.setup import Part, Setup, for_part
from layertap.fleet.sharded import DatasetShard, read_records_of
from layertap.objects.base import ObjectStore
from layertap.objects.files import atomic_write, file_crc32c
from layertap.shards.manifest import FILE_NAME, read_manifest

_TASKS = "tasks.jsonl"
_ENDED = ".ended"


@dataclass(frozen=True)
class Parts:
    """The dataset shards of `store` as runs below `folder`."""

    setup: Setup
    store: ObjectStore
    folder: Path

    def unfinished(self, shards: Iterable[DatasetShard]) -> dict[str, str]:
        """The unfinished attempts at these shards on this worker's disk, by the names of their shards.

        It takes one listing, and a look at each shard that has a folder here.
        """
        there = {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else set()
        attempts = ((shard.name, self._attempt(shard)) for shard in shards if shard.name in there)
        return {name: attempt for name, attempt in attempts if attempt is not None}

    def _attempt(self, shard: DatasetShard) -> str | None:
        """An attempt that has ended does not count, nor does one with the settings of another run."""
        attempts = sorted(path.name for path in (self.folder / shard.name).iterdir() if path.is_dir())
        left = (attempt for attempt in attempts if not self._ended(shard, attempt).exists())
        return next((attempt for attempt in left if self._may_go_on(self.part(shard, attempt))), None)

    def end(self, shard: DatasetShard, attempt: str) -> None:
        """Remember that an attempt was committed, or is damaged; raises StorageError."""
        with atomic_write(self._ended(shard, attempt)):
            pass

    def part(self, shard: DatasetShard, attempt: str) -> Part:
        """Where an attempt at a shard reads and writes."""
        below = f"{shard.name}/{attempt}"
        url = self.setup.upload_url
        return Part(
            name=shard.name,
            dataset_path=str(self.folder / shard.name / _TASKS),
            first_sample_idx=shard.first_sample(self.setup.config.predictions_per_task),
            output_dir=self.folder / below,
            upload_url=None if url is None else f"{url}/{below}",
        )

    def place_records(self, shard: DatasetShard, part: Part) -> None:
        """Put the shard's records on this disk; raises DatasetError where they are not what they were."""
        try:
            records = read_records_of(self.store, shard)
        except DamageError as error:
            raise DatasetError(str(error)) from error
        part.output_dir.mkdir(parents=True, exist_ok=True)
        with atomic_write(Path(part.dataset_path)) as file:
            file.write(records)

    def _ended(self, shard: DatasetShard, attempt: str) -> Path:
        return self.folder / shard.name / f"{attempt}{_ENDED}"

    def _may_go_on(self, part: Part) -> bool:
        found = read_manifest(part.output_dir)
        return found is None or found.fingerprint == for_part(self.setup, part).manifest.fingerprint


def outcome(part: Part, summary: RunSummary) -> dict[str, Any]:
    """What a run made of its part: where, how much, and every file of it."""
    manifest = summary.manifest
    path = part.output_dir / FILE_NAME
    return {
        "output": part.upload_url or str(part.output_dir.resolve()),
        "fingerprint": manifest.fingerprint,
        "samples": manifest.samples,
        "tokens": manifest.tokens,
        "manifest": {"path": FILE_NAME, "bytes": path.stat().st_size, "crc32c": file_crc32c(path)},
        "files": [asdict(file) for entry in manifest.shards for file in entry.files],
    }
