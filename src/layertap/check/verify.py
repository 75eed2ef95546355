"""Read a whole output folder back, and check that it matches its manifest.

For both formats it checks:

- The manifest is consistent.
- Every file exists with its size and CRC-32C, and the manifest names every shard file.
- Every shard holds the right samples, layers, sites, tokens, shapes and dtype; the same token ids
  at every layer and site; matching offsets, positions and flags; the statistics of its activations;
  and exactly as many NaNs or infinities as the manifest says were kept.
- Every sample occurs once. In a complete run of one machine, over a whole dataset or one shard of
  it, none is missing.
- The labels of two samples of each shard are the same when made again (relabel.py), if possible.

It collects all findings: one damaged shard does not hide the next, and no damage stops the check.

Each file is read once, and one is in memory at a time (twice its size for pickles).

What a killed run leaves is not damage: temporary files, and, if the run is not complete, files of
shards after those that the manifest names. The same command writes them again.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from layertap.check.relabel import open_relabelling
from layertap.check.shard_check import ShardCheck
from layertap.core.amounts import amount
from layertap.objects import open_store
from layertap.objects.base import ObjectStore
from layertap.objects.files import TEMPORARY, crc32c_of
from layertap.shards.manifest import FILE_NAME, Json, Manifest, fingerprint_of, index_ranges, shard_number
from layertap.shards.manifest_files import parse_manifest, read_head

OnRead = Callable[[int, int], None]


@dataclass(frozen=True)
class VerifyReport:
    """What was read, and everything that is wrong with it."""

    folder: str
    manifest: Manifest
    head_crc32c: str
    """The checksum of `metadata.json`, eight hexadecimal digits."""
    findings: tuple[str, ...]
    relabelled: int = 0
    """How many samples had their labels made again and compared (relabel.py)."""

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    @property
    def empty(self) -> bool:
        """Whether the run has ended without any sample. One machine's share of few tasks may be
        empty.
        """
        return self.manifest.complete and not self.manifest.samples

    def describe(self) -> str:
        """Return lines for the user."""
        manifest = self.manifest
        held = (len(manifest.shards), "shard"), (manifest.samples, "sample"), (manifest.tokens, "token")
        what = ", ".join(amount(number, thing) for number, thing in held)
        if not self.sound:
            return "\n".join((f"{self.folder}: DAMAGED; {len(self.findings)} findings in {what}:", *self.findings))
        if self.empty:
            return f"{self.folder}: complete, and EMPTY: it holds no sample"
        stopped = f"complete, stopped at --max_tokens_total {manifest.stopped_at}"
        state = "sound so far, the run is not complete" if not manifest.complete else "complete"
        state = state if manifest.stopped_at is None else stopped
        kept = (
            f"; {manifest.nonfinite} activations have a NaN or an infinity, and were kept" if manifest.nonfinite else ""
        )
        again = f", the labels of {self.relabelled} samples made again" if self.relabelled else ""
        return f"{self.folder}: {state}; {what}, every file read back and checked{again}{kept}"

    def to_json(self) -> Json:
        """Return the same for a program."""
        manifest = self.manifest
        return {
            "folder": self.folder,
            "sound": self.sound,
            "complete": manifest.complete,
            "empty": self.empty,
            "nonfinite": manifest.nonfinite,
            "shards": len(manifest.shards),
            "samples": manifest.samples,
            "tokens": manifest.tokens,
            "relabelled": self.relabelled,
            "findings": list(self.findings),
        }


def verify(folder: Path, on_read: OnRead = lambda _done, _total: None) -> VerifyReport:
    """Check an output folder of this machine; see `verify_folder`."""
    return verify_folder(open_store(str(folder)), on_read)


def verify_folder(store: ObjectStore, on_read: OnRead = lambda _done, _total: None) -> VerifyReport:
    """Check an output folder; `on_read` gets the bytes read and the total.

    Raises UsageError if it has no manifest, StorageError if it cannot be read.
    """
    head = read_head(store)
    manifest = parse_manifest(store, head)
    findings = [
        *_wrong_fingerprint(manifest),
        *_unexpected_files(store, manifest),
        *_misnumbered_shards(manifest),
        *_repeated_samples(manifest),
        *_missing_samples(manifest),
    ]
    total = sum(file.bytes for shard in manifest.shards for file in shard.files)
    done = 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        on_read(done, total)

    labels = open_relabelling(manifest)
    for shard in manifest.shards:
        findings += ShardCheck(store, manifest, shard, count, labels).run()
    return VerifyReport(store.url, manifest, crc32c_of([head]), tuple(findings), labels.compared)


def _wrong_fingerprint(manifest: Manifest) -> Iterator[str]:
    if manifest.fingerprint != fingerprint_of(manifest.identity):
        yield f"{FILE_NAME}: the fingerprint does not match the identity; one of them was edited"


def _unexpected_files(store: ObjectStore, manifest: Manifest) -> Iterator[str]:
    named = {file.path for shard in manifest.shards for file in shard.files}
    for info in store.list():
        name = PurePosixPath(info.name).name
        unfinished = not manifest.complete and shard_number(name) > len(manifest.shards)
        if name.startswith("shard_") and info.name not in named and not unfinished and not name.endswith(TEMPORARY):
            yield f"{info.name}: not named by {FILE_NAME}"


def _misnumbered_shards(manifest: Manifest) -> Iterator[str]:
    for expected, shard in enumerate(manifest.shards, 1):
        if shard.index != expected:
            yield f"shard {shard.index}: is in {FILE_NAME} where shard {expected} should be"


def _repeated_samples(manifest: Manifest) -> Iterator[str]:
    ranges = sorted((*pair, shard.index) for shard in manifest.shards for pair in shard.sample_idx)
    reach, holder = -1, 0
    for first, last, shard in ranges:
        if first <= reach:
            yield f"sample {first} is in shard {holder} and in shard {shard}"
        if last > reach:
            reach, holder = last, shard


def _missing_samples(manifest: Manifest) -> Iterator[str]:
    """Yield gaps in the sample numbers of a complete run.

    Machines that share a dataset always have gaps, so they are not checked. If the run stopped
    inside a window, only numbers before the end are checked. A text that may be split reserves many
    numbers and uses the first ones, so the next text may begin that much later.
    """
    per_text = manifest.identity.get("prompts", {}).get("numbers_per_text", 1)
    dataset = manifest.identity.get("dataset", {})
    alone = dataset.get("total_machines", 1 if "part" in dataset else None) == 1
    if not (manifest.complete and alone):
        return
    skipped = [
        (entry["sample_idx"], entry["sample_idx"])
        for entry in manifest.progress["overlong_samples"]["list"]
        if entry["action"] == "skipped"
    ]
    unkept = index_ranges(manifest.unkept_samples)
    ranges = sorted([*(pair for shard in manifest.shards for pair in shard.sample_idx), *skipped, *unkept])
    begin = expected = dataset.get("first_sample_idx", 0)
    end = manifest.progress["sample_idx"]
    if manifest.stopped_at is not None:
        ranges = [pair for pair in ranges if pair[0] < end]
    for first, last in [*ranges, (end, end)]:
        if first > expected:
            if not begin + per_text <= first < expected + per_text:
                yield f"samples {expected} to {first - 1} are in no shard"
            begin = first
        expected = max(expected, last + 1)
