"""Check one shard: its files against the manifest, their content against each other and the
statistics.

Each file is read once, whole, and one is in memory at a time; a safetensors file is a shard. Facts
about samples (numbers, task ids, columns) are kept from every tap as checksums, to compare them
with each other.
"""

from collections.abc import Callable, Iterator, Sequence, Set
from io import BytesIO
from itertools import pairwise
from typing import cast

import numpy as np

from layertap.check.labels import find_wrong_labels
from layertap.check.relabel import Relabelling
from layertap.core.columns import FIRST, PREFIX, SINK_FACTOR, Columns, derived_columns, select
from layertap.core.selection import ALL, NAMES, NO_PREFIX
from layertap.core.taps import Tap
from layertap.errors import DamageError
from layertap.objects.base import ObjectStore
from layertap.objects.files import crc32c_extended
from layertap.shards.decode import open_shard
from layertap.shards.manifest import Manifest, ShardEntry, StoredFile, index_ranges, listed_ranges
from layertap.shards.quantised import fits
from layertap.shards.shard import Shard
from layertap.shards.statistics import TapStatistics, measure, merge_all
from layertap.shards.statistics_files import KIND, read_statistics
from layertap.shards.stored import read_stored

# One sample as its shard describes it at one tap: (sample_idx, task_id, text_preview, checksum of
# its columns).
_Told = tuple[int, str, str, int]

# The positions and norms of each sample's tokens at one tap.
_Norms = dict[int, tuple[np.ndarray, np.ndarray]]

_BY_LABELS = frozenset(NAMES) - {ALL, NO_PREFIX}
"""Selections that labels alone decide."""

_ROUNDING = 1e-9
"""How far sums may differ, relative to their size, if another processor added in another order."""
_FLOAT32_ROUNDING = 1e-6
"""The same for norms, which are stored as float32, and for statistics, which encoding computes in
float32 (shards/measuring.py)."""


class ShardCheck:
    """The check of one shard; `run` fills `findings`."""

    def __init__(
        self,
        store: ObjectStore,
        manifest: Manifest,
        entry: ShardEntry,
        on_read: Callable[[int], None],
        labels: Relabelling,
    ) -> None:
        self.findings: list[str] = []
        self._store = _WholeFiles(store, entry)
        self._manifest = manifest
        self._entry = entry
        self._on_read = on_read
        self._labels = labels
        self._special = frozenset(manifest.special_ids)
        self._told: list[tuple[str, list[_Told]]] = []
        self._measured: dict[Tap, tuple[TapStatistics, _Norms]] = {}
        self._statistics: dict[Tap, TapStatistics] = {}
        self._nonfinite = 0

    def run(self) -> list[str]:
        """Check the shard, and return everything that is wrong with it."""
        held, expected = list(map(_content, self._entry.files)), _expected_files(self._manifest)
        if held != expected:
            self._find(f"shard {self._entry.index}: has files of {_named(held)}; should have {_named(expected)}")
        shard = open_shard(cast(ObjectStore, self._store), self._manifest, self._entry)
        for file in self._entry.files:
            try:
                self._check_file(shard, file)
            except DamageError as error:
                self._find(str(error).removeprefix(f"{self._store.url}/"))
            self._on_read(file.bytes)
        if self._told:
            self._compare_samples()
        if not self.findings and self._nonfinite != self._entry.nonfinite:
            self._find(
                f"shard {self._entry.index}: {self._nonfinite} activations have a NaN or an infinity, should be"
                f" {self._entry.nonfinite}"
            )
        if not self.findings:  # otherwise errors of activations would be reported twice
            self._compare_statistics()
        return self.findings

    def _find(self, finding: str) -> None:
        self.findings.append(finding)

    def _check_file(self, shard: Shard, file: StoredFile) -> None:
        if file.kind == KIND:
            content = self._store.read_whole(file.path)
            self._statistics = read_statistics(content, file.path, self._manifest.taps)
            return
        self._store.read_whole(file.path)
        for tap in self._manifest.taps:
            if file.site in (None, tap.site) and file.layer in (None, tap.layer):
                name = f"layer {tap.layer}" if file.site is not None else f"layer {tap.layer}, {tap.site}"
                self._check_tap(shard, tap, file.path, name)

    def _check_tap(self, shard: Shard, tap: Tap, path: str, name: str) -> None:
        offsets, numbers = shard.offsets(tap).tolist(), shard.sample_idx(tap).tolist()
        columns = {name: shard.column(name, 0, offsets[-1], tap) for name in self._manifest.columns}
        spans = [slice(*span) for span in pairwise(offsets)]
        told = zip(numbers, shard.words(tap), spans, strict=True)
        self._told.append(
            (
                f"{path}, {name}",
                [(number, it.task_id, it.text_preview, _checksum(columns, span)) for number, it, span in told],
            )
        )
        parts = []
        for number, span in zip(numbers, spans, strict=True):
            values = shard.activations(tap, span.start, span.stop)
            parts.append(measure(values, number))
            for finding in self._wrong_scales(shard, tap, values, span):
                self._find(f"{path}: {name}, sample {number}: {finding}")
        norms = np.concatenate([np.empty(0), *(norms for _, norms in parts)])
        for number, span in zip(numbers, spans, strict=True):
            own = {name: values[span] for name, values in columns.items()}
            unfit = _wrong_columns(own, self._special, self._manifest.keep_tokens)
            for finding in (*unfit, *self._wrong_norms(shard, tap, norms, span)):
                self._find(f"{path}: {name}, sample {number}: {finding}")
        if len(self._told) == 1:  # labels are the same at all taps
            for row, impossible in find_wrong_labels(columns):
                place = int(np.searchsorted(offsets, row, side="right")) - 1
                token = f"sample {numbers[place]}: token {row - offsets[place]} {impossible}"
                self._find(f"{path}: {name}, {token}")
            for place in sorted({0, len(spans) - 1} & set(range(len(spans)))):
                wrong = self._labels.finding({name: values[spans[place]] for name, values in columns.items()})
                self.findings += [] if wrong is None else [f"{path}: {name}, sample {numbers[place]}: {wrong}"]
        for finding in self._wrong_sinks(shard, tap, norms):
            self._find(f"{path}: {name}: {finding}")
        whole = merge_all((part for part, _ in parts), self._manifest.taps[tap])
        places = shard.column("positions", 0, offsets[-1], tap)
        self._measured[tap] = (
            whole,
            {number: (places[span], norms[span]) for number, span in zip(numbers, spans, strict=True)},
        )

    def _wrong_scales(self, shard: Shard, tap: Tap, values: np.ndarray, span: slice) -> Iterator[str]:
        scales = shard.scales(tap, span.start, span.stop)
        if scales is None:
            return
        wrong = np.flatnonzero(~fits(values, scales, self._manifest.storage_dtype))
        if wrong.size:
            yield (
                f"scale of token {wrong[0]} is {scales[wrong[0]]:g}, and its largest code not the largest of"
                f" {self._manifest.storage_dtype}; {wrong.size} are wrong"
            )

    def _wrong_norms(self, shard: Shard, tap: Tap, norms: np.ndarray, span: slice) -> Iterator[str]:
        nonfinite = int((~np.isfinite(norms[span])).sum())
        self._nonfinite += nonfinite
        if nonfinite and not self._entry.nonfinite:
            yield "activation has a NaN or an infinity"
        elif self._manifest.format_version > 1:
            stored = shard.norms(tap, span.start, span.stop)
            wrong = np.flatnonzero(
                ~np.isclose(stored, norms[span].astype(np.float32), rtol=_FLOAT32_ROUNDING, equal_nan=True)
            )
            if wrong.size:
                at = wrong[0]
                yield f"norm of token {at} is {stored[at]:g}, should be {norms[span][at]:g}; {wrong.size} are wrong"

    def _wrong_sinks(self, shard: Shard, tap: Tap, norms: np.ndarray) -> Iterator[str]:
        """Yield errors in the sink flags of version 1, which used the median norm of the shard."""
        if self._manifest.format_version > 1 or not np.isfinite(norms).all() or not norms.size:
            return
        threshold = SINK_FACTOR * np.median(norms)
        certain = ~np.isclose(norms, threshold, rtol=_ROUNDING)
        wrong = np.flatnonzero((shard.sinks(tap, 0, len(norms)) != (norms > threshold)) & certain)
        if wrong.size:
            yield f"the flag of sinks is wrong at {wrong.size} tokens, first at row {wrong[0]} of the shard"

    def _compare_statistics(self) -> None:
        """Compare the statistics with those of the activations."""
        path = next(file.path for file in self._entry.files if file.kind == KIND)
        if self._statistics.keys() != self._measured.keys():
            self._find(f"{path}: has other layers and sites than the activations")
            return
        for tap, (measured, norms_of) in self._measured.items():
            wrong = _wrong_statistics(self._statistics[tap], measured, norms_of)
            if wrong:
                self._find(f"{path}: layer {tap.layer}, {tap.site}: {wrong}")

    def _compare_samples(self) -> None:
        """Compare the samples with the manifest, and between taps, including their order."""
        reference, samples = self._told[0]
        self.findings += [f"{reference}: {finding}" for finding in _wrong_samples(self._entry, samples)]
        for name, others in self._told[1:]:
            if others != samples:
                self._find(f"{name}: has other samples, task ids or columns than {reference}")


class _WholeFiles:
    """The store of a `Shard`: it reads a file whole, checks its checksum once, and keeps the
    last.
    """

    def __init__(self, store: ObjectStore, entry: ShardEntry) -> None:
        self.url = store.url
        self.local = False
        self._store = store
        self._files = {file.path: file for file in entry.files}
        self._path = ""
        self._content = b""

    def read_whole(self, path: str) -> bytes:
        """Return the content of a file; raises DamageError if it does not match the manifest."""
        if path != self._path:
            self._path, self._content = "", b""
            self._content, self._path = read_stored(self._store, self._files[path]), path
        return self._content

    def view(self, path: str, start: int, length: int) -> np.ndarray:
        """Return a part of a file; raises DamageError if the file ends earlier."""
        part = np.frombuffer(self.read_whole(path), np.uint8)[start : start + length]
        if len(part) != length:
            raise DamageError(f"{path}: ends before byte {start + length}")
        return part

    def open(self, path: str, _size: int | None = None) -> BytesIO:
        """Open a file for reading in order."""
        return BytesIO(self.read_whole(path))


def _content(file: StoredFile) -> tuple[str, str | None, int | None]:
    return file.kind, file.site, file.layer


def _expected_files(manifest: Manifest) -> list[tuple[str, str | None, int | None]]:
    held: list[tuple[str, str | None, int | None]]
    if manifest.format == "pickle":
        held = [("activations", site, None) for site in manifest.sites]
    elif manifest.format_version == 1:
        held = [("activations", tap.site, tap.layer) for tap in manifest.taps]
    else:
        held = [("activations", None, None)]
    return [*held, (KIND, None, None)]


def _named(files: list[tuple[str, str | None, int | None]]) -> str:
    names = (str(site or kind) + ("" if layer is None else f" layer {layer}") for kind, site, layer in files)
    return ", ".join(names) or "none"


def _checksum(columns: Columns, span: slice) -> int:
    """Return the checksum of the columns, which are the same at all taps."""
    crc = 0
    for values in columns.values():
        crc = crc32c_extended(crc, values[span].tobytes())
    return crc


def _wrong_columns(columns: Columns, special: Set[int], kept: Sequence[str]) -> Iterator[str]:
    """Yield errors in the columns that follow from the tokens and from `kept`."""
    expected = derived_columns(columns["token_ids"], special)
    prefix = columns["flags"] & PREFIX  # template and tokenizer tell of it, which are not here
    if (np.diff(prefix.astype(np.int8)) > 0).any():
        yield "tokens are flagged as prefix behind others that are not"
    expected["flags"] |= prefix
    if ALL not in kept:
        positions = columns["positions"]
        if (positions[:1] < 0).any() or (np.diff(positions) <= 0).any():
            yield "positions do not ascend from 0 or more"
        expected["positions"] = positions
        expected["flags"][:1] &= np.where(positions[:1] == 0, np.uint8(0xFF), np.uint8(0xFF & ~FIRST))
        if _BY_LABELS.issuperset(kept) and not (chosen := select(columns, kept)).all():
            yield f"the token at position {positions[~chosen][0]} is not in {', '.join(kept)}, but only these are kept"
    for name, values in columns.items():
        wrong = np.flatnonzero(values != expected.get(name, values))
        if wrong.size:
            at = wrong[0]
            yield f"{name} of token {at} are {values[at]}, should be {expected[name][at]}; {wrong.size} are wrong"


def _wrong_statistics(stored: TapStatistics, measured: TapStatistics, norms_of: _Norms) -> str | None:
    scale = np.sqrt(measured.mean_square_norm)
    sizes = {"mean": scale, "m2": measured.count * scale**2, "mean_norm": scale, "mean_square_norm": scale**2}
    for name, size in {"count": 0.0, **sizes, "max_norm": measured.max_norm}.items():
        there, here = getattr(stored, name), getattr(measured, name)
        if not np.allclose(there, here, rtol=_FLOAT32_ROUNDING, atol=_FLOAT32_ROUNDING * size):
            return f"{name} is not that of the activations"
    positions, norms = norms_of.get(stored.max_sample_idx, (np.empty(0), np.empty(0)))
    place = norms[positions == stored.max_position]
    if not np.allclose(place, stored.max_norm, rtol=_FLOAT32_ROUNDING) or place.size != min(measured.count, 1):
        return f"the largest norm is not at token {stored.max_position} of sample {stored.max_sample_idx}"
    return None


def _wrong_samples(entry: ShardEntry, samples: list[_Told]) -> Iterator[str]:
    held = index_ranges(index for index, *_ in samples)
    if held != entry.sample_idx:
        yield f"holds samples {listed_ranges(held)}, should hold {listed_ranges(entry.sample_idx)}"
    if len(samples) != entry.samples:
        yield f"holds {len(samples)} samples, should hold {entry.samples}"
