"""Checking one shard: its files against the manifest, their content against each other and against its statistics.

A file is read once, whole, and one is in memory at a time. What is told of samples (numbers, task ids, token ids) is
kept from every layer and site, so that they can be held against each other.
"""

from collections.abc import Callable, Iterator

import numpy as np

from layertap.core.taps import Tap
from layertap.errors import DamageError
from layertap.objects.base import ObjectStore
from layertap.shards.flags import SINK, sink_threshold, token_flags
from layertap.shards.manifest import Manifest, ShardEntry, StoredFile, index_ranges, listed_ranges
from layertap.shards.reading import ReadLayer, ReadSample, read_layers, wrong_form
from layertap.shards.statistics import Norms, TapStatistics, measure, merge_all
from layertap.shards.statistics_files import KIND, read_statistics
from layertap.shards.stored import read_stored

# One sample as its shard tells it at one layer: (sample_idx, task_id, text_preview, token ids).
_Told = tuple[int, str, str, bytes]

_ROUNDING = 1e-9
"""How far, relative to their size, sums may differ that another processor made in another order."""


class ShardCheck:
    """One shard under examination; `findings` fills as `run` goes on."""

    def __init__(
        self, store: ObjectStore, manifest: Manifest, shard: ShardEntry, on_read: Callable[[int], None]
    ) -> None:
        self.findings: list[str] = []
        self._store = store
        self._manifest = manifest
        self._shard = shard
        self._on_read = on_read
        self._special = frozenset(manifest.special_ids)
        self._told: list[tuple[str, list[_Told]]] = []
        self._measured: dict[Tap, tuple[TapStatistics, dict[int, Norms]]] = {}
        self._statistics: dict[Tap, TapStatistics] = {}

    def run(self) -> list[str]:
        """Everything that is wrong with the shard."""
        held, expected = list(map(_content, self._shard.files)), _expected_files(self._manifest)
        if held != expected:
            self._find(f"shard {self._shard.index}: has files of {_named(held)}; should have {_named(expected)}")
        for file in self._shard.files:
            try:
                content = read_stored(self._store, file)
                if file.kind == KIND:
                    self._statistics = read_statistics(content, file.path, self._manifest.hidden_size)
                else:
                    self._check_activations(file, content)
            except DamageError as error:
                self._find(str(error))
            self._on_read(file.bytes)
        if self._told:
            self._compare_samples()
        if not self.findings:  # what is wrong with activations would be told twice
            self._compare_statistics()
        return self.findings

    def _find(self, finding: str) -> None:
        self.findings.append(finding)

    def _check_activations(self, file: StoredFile, content: bytes) -> None:
        findings, layers = read_layers(content, self._manifest, file)
        self.findings += findings
        held, expected = [layer.layer for layer in layers], list(self._manifest.layers)
        if file.layer is None and held != expected:
            self._find(f"{file.path}: holds layers {held}, should hold {expected}")
        for layer in layers:
            self._check_layer(file, layer)
            self._told.append((layer.name, [_tell(sample) for sample in layer.samples]))

    def _check_layer(self, file: StoredFile, layer: ReadLayer) -> None:
        wrong = [wrong_form(self._manifest, sample) for sample in layer.samples]
        sound = [sample for sample, finding in zip(layer.samples, wrong, strict=True) if not finding]
        measured = [measure(sample.activation, sample.sample_idx) for sample in sound]
        threshold = None
        if not any(wrong):  # the threshold and the statistics of a layer that lacks a sample are others
            threshold = sink_threshold(np.concatenate([np.empty(0), *(norms for _, norms in measured)]))
            whole = merge_all((part for part, _ in measured), self._manifest.hidden_size)
            norms_of = {sample.sample_idx: norms for sample, (_, norms) in zip(sound, measured, strict=True)}
            self._measured[Tap(layer.layer, layer.site)] = whole, norms_of
        values = iter(measured)
        for sample, finding in zip(layer.samples, wrong, strict=True):
            found = finding or _wrong_values(sample, next(values)[1], threshold, self._special)
            if found:
                self._find(f"{file.path}: layer {layer.layer}, sample {sample.sample_idx}: {found}")

    def _compare_statistics(self) -> None:
        """The statistics are those of the activations."""
        (path,) = (file.path for file in self._shard.files if file.kind == KIND)
        if self._statistics.keys() != self._measured.keys():
            self._find(f"{path}: is of other layers and sites than the activations")
            return
        for tap, (measured, norms_of) in self._measured.items():
            wrong = _wrong_statistics(self._statistics[tap], measured, norms_of)
            if wrong:
                self._find(f"{path}: layer {tap.layer}, {tap.site}: {wrong}")

    def _compare_samples(self) -> None:
        """The samples are those of the manifest, and the same ones in the same order at every layer and site."""
        reference, samples = self._told[0]
        self.findings += [f"{reference}: {finding}" for finding in _wrong_samples(self._shard, samples)]
        for name, others in self._told[1:]:
            if others != samples:
                self._find(f"{name}: other samples, task ids or token ids than in {reference}")


def _content(file: StoredFile) -> tuple[str, str | None, int | None]:
    return file.kind, file.site, file.layer


def _expected_files(manifest: Manifest) -> list[tuple[str, str | None, int | None]]:
    layers: tuple[int | None, ...] = manifest.layers if manifest.format == "safetensors" else (None,)
    return [*(("activations", site, layer) for site in manifest.sites for layer in layers), (KIND, None, None)]


def _named(files: list[tuple[str, str | None, int | None]]) -> str:
    names = (str(site or kind) + ("" if layer is None else f" layer {layer}") for kind, site, layer in files)
    return ", ".join(names) or "none"


def _tell(sample: ReadSample) -> _Told:
    return sample.sample_idx, sample.task_id, sample.text_preview, sample.token_ids.tobytes()


def _wrong_values(sample: ReadSample, norms: Norms, threshold: float | None, special: frozenset[int]) -> str | None:
    if not np.isfinite(norms).all():
        return "activation has a NaN or an infinity"
    expected = token_flags(sample.token_ids, norms, threshold or 0.0, special)
    uncertain = np.isclose(norms, threshold, rtol=_ROUNDING) if threshold is not None else np.True_
    wrong = np.flatnonzero((sample.flags ^ expected) & np.where(uncertain, ~np.uint8(SINK), ~np.uint8(0)))
    if wrong.size:
        at = wrong[0]
        return f"flags of token {at} are {sample.flags[at]}, should be {expected[at]}; {wrong.size} are wrong"
    return None


def _wrong_statistics(stored: TapStatistics, measured: TapStatistics, norms_of: dict[int, Norms]) -> str | None:
    scale = np.sqrt(measured.mean_square_norm)
    sizes = {"mean": scale, "m2": measured.count * scale**2, "mean_norm": scale, "mean_square_norm": scale**2}
    for name, size in {"count": 0.0, **sizes, "max_norm": measured.max_norm}.items():
        there, here = getattr(stored, name), getattr(measured, name)
        if not np.allclose(there, here, rtol=_ROUNDING, atol=_ROUNDING * size):
            return f"{name} is not that of the activations"
    place = norms_of.get(stored.max_sample_idx, np.empty(0))[stored.max_position : stored.max_position + 1]
    if not np.allclose(place, stored.max_norm, rtol=_ROUNDING) or place.size != min(measured.count, 1):
        return f"the largest norm is not at token {stored.max_position} of sample {stored.max_sample_idx}"
    return None


def _wrong_samples(shard: ShardEntry, samples: list[_Told]) -> Iterator[str]:
    held = index_ranges(index for index, *_ in samples)
    if held != shard.sample_idx:
        yield f"holds samples {listed_ranges(held)}, should hold {listed_ranges(shard.sample_idx)}"
    if len(samples) != shard.samples:
        yield f"holds {len(samples)} samples, should hold {shard.samples}"
    tokens = sum(len(ids) // np.dtype(np.int32).itemsize for *_, ids in samples)
    if tokens != shard.tokens:
        yield f"holds {tokens} tokens, should hold {shard.tokens}"
