"""Reading a whole output folder back, and checking that it is what its manifest says.

Checked: every file is there with its size and CRC-32C, and no shard file is there that the manifest does not name;
every shard has a file for each site, and holds the samples, layers, tokens, shapes and dtype that it should, with the
same token ids at every layer and site and no NaN or infinity; no sample stands twice. All findings are collected: one
damaged shard does not hide the next, and no content, however damaged, ends the check. Every file is read twice, the
second time from the system's cache; one is in memory at a time.

What a killed run leaves (temporary files, and the next shard without a manifest that names it) is no damage: the same
command writes it again.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from layertap.errors import DamageError, UsageError
from layertap.store.files import TEMPORARY, file_crc32c
from layertap.store.manifest import FILE_NAME, Manifest, ShardEntry, StoredFile, index_ranges, read_manifest
from layertap.store.pickles import read_pickle

# One sample as its shard tells it at one layer: (sample_idx, task_id, token ids); and a layer's, with the layer's name.
_Told = tuple[int, str, bytes]
_ToldLayer = tuple[str, list[_Told]]


@dataclass(frozen=True)
class VerifyReport:
    """What was read, and everything that is wrong with it."""

    folder: Path
    manifest: Manifest
    findings: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    def describe(self) -> str:
        """Lines for a person."""
        manifest = self.manifest
        what = f"{len(manifest.shards)} shards, {manifest.samples} samples, {manifest.tokens} tokens"
        if not self.sound:
            return "\n".join((f"{self.folder}: DAMAGED; {len(self.findings)} findings in {what}:", *self.findings))
        state = "complete" if manifest.complete else "sound so far, the run is not complete"
        return f"{self.folder}: {state}; {what}, every file read back and checked"


def verify(folder: Path) -> VerifyReport:
    """Check an output folder; raises UsageError where it holds no manifest, StorageError where it cannot be read."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise UsageError(f"{folder / FILE_NAME}: no such file; {folder} is not the output folder of a run")
    findings = [
        *_unexpected_files(folder, manifest),
        *_misnumbered_shards(manifest),
        *_repeated_samples(manifest),
        *(finding for shard in manifest.shards for finding in _check_shard(folder, manifest, shard)),
    ]
    return VerifyReport(folder, manifest, tuple(findings))


def _unexpected_files(folder: Path, manifest: Manifest) -> Iterator[str]:
    named = {file.path for shard in manifest.shards for file in shard.files}
    unfinished = f"shard_{len(manifest.shards) + 1:04d}.pkl"
    for path in sorted(folder.rglob("shard_*")):
        relative = path.relative_to(folder).as_posix()
        left_by_kill = path.name.endswith(TEMPORARY) or (not manifest.complete and path.name.startswith(unfinished))
        if relative not in named and not left_by_kill:
            yield f"{relative}: not named by {FILE_NAME}"


def _misnumbered_shards(manifest: Manifest) -> Iterator[str]:
    for expected, shard in enumerate(manifest.shards, 1):
        if shard.index != expected:
            yield f"shard {shard.index}: stands in {FILE_NAME} where shard {expected} should"


def _repeated_samples(manifest: Manifest) -> Iterator[str]:
    ranges = sorted((*pair, shard.index) for shard in manifest.shards for pair in shard.sample_idx)
    reach, holder = -1, 0
    for first, last, shard in ranges:
        if first <= reach:
            yield f"sample {first} stands in shard {holder} and in shard {shard}"
        if last > reach:
            reach, holder = last, shard


def _check_shard(folder: Path, manifest: Manifest, shard: ShardEntry) -> Iterator[str]:
    sites = tuple(file.site for file in shard.files)
    if sites != manifest.sites:
        yield f"shard {shard.index}: has files of sites {list(sites)}, should have {list(manifest.sites)}"
    told: list[_ToldLayer] = []
    for file in shard.files:
        findings, layers = _check_file(folder, manifest, file)
        yield from findings
        told += layers
    if told:
        yield from _check_samples(shard, *told[0])
        yield from _disagreements(*told)


def _check_file(folder: Path, manifest: Manifest, file: StoredFile) -> tuple[list[str], list[_ToldLayer]]:
    """What is wrong with the file, and what it tells of its samples."""
    damage = _file_damage(folder, file)
    if damage:
        return [f"{file.path}: {damage}"], []
    try:
        content = read_pickle(folder / file.path)
    except DamageError as error:
        return [str(error)], []
    findings = [f"{file.path}: {finding}" for finding in _check_content(manifest, content)]
    return findings, [(f"{file.path}, layer {layer}", _tell(entries)) for layer, entries in content.items()]


def _file_damage(folder: Path, file: StoredFile) -> str | None:
    path = folder / file.path
    try:
        if not path.is_file():
            return "missing"
        if path.stat().st_size != file.bytes:
            return f"has {path.stat().st_size} bytes, should have {file.bytes}"
        crc32c = file_crc32c(path)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None if crc32c == file.crc32c else f"has CRC-32C {crc32c}, should have {file.crc32c}"


def _check_content(manifest: Manifest, content: dict[int, list[dict[str, Any]]]) -> Iterator[str]:
    if tuple(content) != manifest.layers:
        yield f"holds layers {list(content)}, should hold {list(manifest.layers)}"
    for layer, entries in content.items():
        for entry in entries:
            wrong = _wrong_activation(manifest, entry)
            if wrong:
                yield f"layer {layer}, sample {entry['sample_idx']}: {wrong}"


def _wrong_activation(manifest: Manifest, entry: dict[str, Any]) -> str | None:
    activation = entry["activation"]
    expected = (len(entry["token_ids"]), manifest.hidden_size)
    if activation.shape != expected:
        return f"activation has shape {activation.shape}, should have {expected}"
    if entry["shape"] != expected:
        return f"field shape says {entry['shape']}, should say {expected}"
    if activation.dtype.name != manifest.storage_dtype:
        return f"activation is {activation.dtype.name}, should be {manifest.storage_dtype}"
    with np.errstate(invalid="ignore"):  # ml_dtypes warns of the NaN that is looked for
        finite = np.isfinite(activation).all()
    return None if finite else "activation has a NaN or an infinity"


def _tell(entries: Iterable[dict[str, Any]]) -> list[_Told]:
    return [(entry["sample_idx"], entry["task_id"], entry["token_ids"].tobytes()) for entry in entries]


def _check_samples(shard: ShardEntry, name: str, samples: list[_Told]) -> Iterator[str]:
    """The samples are those of the manifest."""
    held = index_ranges(index for index, _, _ in samples)
    if held != shard.sample_idx:
        yield f"{name}: holds samples {_listed(held)}, should hold {_listed(shard.sample_idx)}"
    if len(samples) != shard.samples:
        yield f"{name}: holds {len(samples)} samples, should hold {shard.samples}"
    tokens = sum(len(ids) // np.dtype(np.int32).itemsize for _, _, ids in samples)
    if tokens != shard.tokens:
        yield f"{name}: holds {tokens} tokens, should hold {shard.tokens}"


def _listed(ranges: Iterable[tuple[int, int]]) -> str:
    return ", ".join(f"{first} to {last}" for first, last in ranges)


def _disagreements(first: _ToldLayer, *others: _ToldLayer) -> Iterator[str]:
    """Every layer and site tells of the same samples, in the same order."""
    for name, samples in others:
        if samples != first[1]:
            yield f"{name}: other samples, task ids or token ids than in {first[0]}"
