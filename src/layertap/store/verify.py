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

import numpy as np

from layertap.errors import DamageError, UsageError
from layertap.store.files import TEMPORARY, file_crc32c
from layertap.store.flags import SINK, Norms, sink_threshold, token_flags, token_norms
from layertap.store.manifest import FILE_NAME, Manifest, ShardEntry, StoredFile, index_ranges, read_manifest
from layertap.store.reading import ReadLayer, ReadSample, read_file

# One sample as its shard tells it at one layer: (sample_idx, task_id, token ids); and a layer's, with the layer's name.
_Told = tuple[int, str, bytes]
_ToldLayer = tuple[str, list[_Told]]

_BORDER = 1e-9
"""Norms so close to the sink threshold, relative to it, may fall on either side on another processor."""


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
    unfinished = f"shard_{len(manifest.shards) + 1:04d}."
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
    held, expected = [(file.site, file.layer) for file in shard.files], _expected_files(manifest)
    if held != expected:
        yield f"shard {shard.index}: has files of {_named(held)}; should have {_named(expected)}"
    told: list[_ToldLayer] = []
    for file in shard.files:
        findings, layers = _check_file(folder, manifest, file)
        yield from findings
        told += layers
    if told:
        yield from _check_samples(shard, *told[0])
        yield from _disagreements(*told)


def _expected_files(manifest: Manifest) -> list[tuple[str, int | None]]:
    layers: tuple[int | None, ...] = manifest.layers if manifest.format == "safetensors" else (None,)
    return [(site, layer) for site in manifest.sites for layer in layers]


def _named(files: list[tuple[str, int | None]]) -> str:
    return ", ".join(f"{site}" if layer is None else f"{site} layer {layer}" for site, layer in files) or "none"


def _check_file(folder: Path, manifest: Manifest, file: StoredFile) -> tuple[list[str], list[_ToldLayer]]:
    """What is wrong with the file, and what it tells of its samples."""
    damage = _file_damage(folder, file)
    if damage:
        return [f"{file.path}: {damage}"], []
    try:
        findings, layers = read_file(folder / file.path, manifest, file)
    except DamageError as error:
        return [str(error)], []
    held, expected = [layer.layer for layer in layers], list(manifest.layers)
    if file.layer is None and held != expected:
        findings.append(f"{file.path}: holds layers {held}, should hold {expected}")
    findings += [finding for layer in layers for finding in _check_layer(manifest, file, layer)]
    return findings, [(layer.name, _tell(layer)) for layer in layers]


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


def _check_layer(manifest: Manifest, file: StoredFile, layer: ReadLayer) -> Iterator[str]:
    malformed = [_wrong_form(manifest, sample) for sample in layer.samples]
    norms = [np.empty(0) if wrong else token_norms(sample.activation) for sample, wrong in _paired(layer, malformed)]
    # The threshold of a layer that lacks a sample is another one.
    threshold = None if any(malformed) else sink_threshold(np.concatenate([np.empty(0), *norms]))
    for (sample, wrong), own in zip(_paired(layer, malformed), norms, strict=True):
        finding = wrong or _wrong_values(frozenset(manifest.special_ids), sample, own, threshold)
        if finding:
            yield f"{file.path}: layer {layer.layer}, sample {sample.sample_idx}: {finding}"


def _paired(layer: ReadLayer, malformed: list[str | None]) -> Iterator[tuple[ReadSample, str | None]]:
    return zip(layer.samples, malformed, strict=True)


def _wrong_form(manifest: Manifest, sample: ReadSample) -> str | None:
    activation = sample.activation
    expected = (len(sample.token_ids), manifest.hidden_size)
    if activation.shape != expected:
        return f"activation has shape {activation.shape}, should have {expected}"
    if sample.shape != expected:
        return f"field shape says {sample.shape}, should say {expected}"
    if activation.dtype.name != manifest.storage_dtype:
        return f"activation is {activation.dtype.name}, should be {manifest.storage_dtype}"
    if len(sample.flags) != len(sample.token_ids):
        return f"has {len(sample.flags)} flags, should have {len(sample.token_ids)}"
    return None


def _wrong_values(special: frozenset[int], sample: ReadSample, norms: Norms, threshold: float | None) -> str | None:
    if not np.isfinite(norms).all():
        return "activation has a NaN or an infinity"
    expected = token_flags(sample.token_ids, norms, threshold or 0.0, special)
    uncertain = np.isclose(norms, threshold, rtol=_BORDER) if threshold is not None else np.True_
    wrong = np.flatnonzero((sample.flags ^ expected) & np.where(uncertain, ~np.uint8(SINK), ~np.uint8(0)))
    if wrong.size:
        at = wrong[0]
        return f"flags of token {at} are {sample.flags[at]}, should be {expected[at]}; {wrong.size} are wrong"
    return None


def _tell(layer: ReadLayer) -> list[_Told]:
    return [(sample.sample_idx, sample.task_id, sample.token_ids.tobytes()) for sample in layer.samples]


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
