"""Encoding: from some samples to the bytes of a shard, as a pure function.

`encode` reads and writes no file and knows no device. Its result follows from its arguments alone,
so shards may be encoded in any order, by any thread, and are appended in their own order later
(writer.py). It costs one pass over the values for statistics and norms, one conversion where the
storage dtype is another one, one checksum, and for pickles one compression. The bytes of one shard
are in memory meanwhile; values that need no conversion are not copied.

Norms are of the values as stored, so what is lost by rounding is rounded before it is measured.
Widening loses nothing and is left to the moment of writing.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from layertap.core.columns import Norms
from layertap.core.sample import Activation, Sample
from layertap.core.taps import Site, Tap
from layertap.errors import StorageError
from layertap.objects.content import MemoryContent
from layertap.shards.manifest import ShardEntry, StoredFile, index_ranges
from layertap.shards.measuring import measure_in_float32
from layertap.shards.pickles import write_pickle
from layertap.shards.safetensors import write_safetensors
from layertap.shards.statistics import TapStatistics, merge_all
from layertap.shards.statistics_files import KIND, write_statistics
from layertap.shards.tensors import Sink

_THREADS = min(16, os.cpu_count() or 1)
"""How many samples are measured at once; numpy releases the interpreter meanwhile."""


@dataclass(frozen=True)
class ShardFormat:
    """How shards are encoded."""

    taps: Mapping[Tap, int]
    """What is stored, and the width of each."""
    dtype: np.dtype
    compress: bool
    """Whether pickles are gzipped; safetensors never are."""
    name: Literal["pickle", "safetensors"] = "pickle"
    keep_nonfinite: bool = False
    """Whether activations with a NaN or an infinity are stored and counted; else they are
    refused."""

    @property
    def bytes_per_token(self) -> int:
        """Bytes of activations that a token brings, before compression."""
        return sum(self.taps.values()) * self.dtype.itemsize

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers among the taps, ascending."""
        return tuple(sorted({tap.layer for tap in self.taps}))

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites among the taps, in their order."""
        return tuple(dict.fromkeys(tap.site for tap in self.taps))

    def files(self, index: int) -> dict[str, str | None]:
        """The paths of shard `index`, counted from 1, that hold activations, with the site of
        each.
        """
        if self.name == "safetensors":
            return {f"shard_{index:04d}.safetensors": None}
        name = f"shard_{index:04d}.pkl" + (".gz" if self.compress else "")
        alone = len(self.sites) == 1
        return {name if alone else f"{site}/{name}": site for site in self.sites}


@dataclass(frozen=True)
class EncodedShard:
    """A shard as it will be stored: its entry in the manifest, and the content of each file in
    it.
    """

    entry: ShardEntry
    contents: Mapping[str, MemoryContent]
    """By path."""


def encode(index: int, samples: Sequence[Sample], form: ShardFormat, about: Mapping[str, str]) -> EncodedShard:
    """Shard `index` of these samples, of which there is at least one; `about` the run goes into
    safetensors.

    Raises StorageError where a finite value does not fit into float16, and for a NaN or an infinity
    that is not to be kept.
    """
    values = _measure_taps(samples, form)
    contents = {path: _encode_file(site, samples, values, form, about) for path, site in form.files(index).items()}
    files = [
        StoredFile(path, "activations", site, contents[path].size, contents[path].crc32c)
        for path, site in form.files(index).items()
    ]
    path = f"statistics/shard_{index:04d}.safetensors"
    contents[path] = _encode_statistics(values, about)
    files.append(StoredFile(path, KIND, None, contents[path].size, contents[path].crc32c))
    entry = ShardEntry(
        index=index,
        samples=len(samples),
        tokens=sum(sample.tokens for sample in samples),
        sample_idx=index_ranges(sample.sample_idx for sample in samples),
        files=tuple(files),
        nonfinite=sum(sum(map(len, it.norms)) - it.statistics.count for it in values.values()),
    )
    return EncodedShard(entry, contents)


@dataclass(frozen=True, eq=False)
class _TapValues:
    """A shard at one tap."""

    activations: Sequence[Activation]
    """One a sample: rounded to the storage dtype, or narrower."""
    norms: Sequence[Norms]
    statistics: TapStatistics


def _measure_taps(samples: Sequence[Sample], form: ShardFormat) -> dict[Tap, _TapValues]:
    with ThreadPoolExecutor(_THREADS) as pool:  # results come in the samples' order
        return {
            tap: _collect(pool.map(lambda sample, tap=tap: measure_sample(sample, tap, form), samples), width)
            for tap, width in form.taps.items()
        }


def measure_sample(sample: Sample, tap: Tap, form: ShardFormat) -> tuple[Activation, Norms, TapStatistics]:
    """What is stored of a sample at a tap: the values, their norms and their statistics.

    Raises StorageError where a finite value does not fit into float16, and for a NaN or an infinity
    that is not to be kept.
    """
    rounded = round_activation(sample, tap, form.dtype)
    statistics, norms = measure_in_float32(rounded, sample.sample_idx)
    require_finite(sample, tap, norms, form)
    if statistics.count:
        positions = sample.columns["positions"]
        statistics = replace(statistics, max_position=int(positions[statistics.max_position]))
    return rounded, norms.astype(np.float32), statistics


def require_finite(sample: Sample, tap: Tap, norms: Norms, form: ShardFormat) -> None:
    """Raise StorageError for a NaN or an infinity, which norms show, that is not to be kept."""
    finite = np.isfinite(norms)
    if not form.keep_nonfinite and not finite.all():
        raise _nonfinite(sample, tap, sample.columns["positions"][~finite])


def _collect(measured: Iterator[tuple[Activation, Norms, TapStatistics]], width: int) -> _TapValues:
    activations, norms, statistics = zip(*measured, strict=True)
    return _TapValues(activations, norms, merge_all(statistics, width))


def round_activation(sample: Sample, tap: Tap, dtype: np.dtype) -> Activation:
    """The activation with values that `dtype` holds exactly.

    Raises StorageError where a finite value does not fit into float16.
    """
    activation = sample.activations[tap]
    if np.can_cast(activation.dtype, dtype):
        return activation
    with np.errstate(over="ignore", invalid="ignore"):  # what is lost is reported below; NaN stays NaN
        rounded = np.asarray(activation, dtype)
        too_large = dtype == np.float16 and (np.isinf(rounded) & np.isfinite(activation)).any()
    if too_large:
        raise StorageError(
            f"{_place(sample, tap)}: a value is too large for float16 (65504); use --storage_dtype float32 or bfloat16"
        )
    return rounded


def _nonfinite(sample: Sample, tap: Tap, tokens: np.ndarray) -> StorageError:
    """For the tokens at these positions, which have a NaN or an infinity."""
    return StorageError(
        f"{_place(sample, tap)}, token {tokens[0]}: the activation has a NaN or an infinity, as have those of"
        f" {len(tokens)} of its {sample.tokens} tokens there. A sound model gives none: look for it in the weights."
        " To store such activations as they are, and have them counted, pass --on_nonfinite keep"
    )


def _place(sample: Sample, tap: Tap) -> str:
    return f"task {sample.task_id}, sample {sample.sample_idx}, layer {tap.layer}, {tap.site}"


def _encode_file(
    site: str | None,
    samples: Sequence[Sample],
    values: Mapping[Tap, _TapValues],
    form: ShardFormat,
    about: Mapping[str, str],
) -> MemoryContent:
    sink = _Collector()
    write_samples(sink, site, samples, {tap: (it.activations, it.norms) for tap, it in values.items()}, form, about)
    return MemoryContent(sink.buffers)


def write_samples(
    sink: Sink,
    site: str | None,
    samples: Sequence[Sample],
    values: Mapping[Tap, tuple[Sequence[Activation], Sequence[Norms]]],
    form: ShardFormat,
    about: Mapping[str, str],
) -> None:
    """Write one file of a shard, which has these values at its taps; `site` as `ShardFormat.files`
    gives it.
    """
    if site is not None:
        layers = {tap.layer: of_tap for tap, of_tap in values.items() if tap.site == site}
        write_pickle(sink, samples, layers, form.dtype, compress=form.compress)
        return
    stored = {tap: [part.astype(form.dtype, copy=False) for part in parts] for tap, (parts, _) in values.items()}
    write_safetensors(sink, samples, stored, {tap: norms for tap, (_, norms) in values.items()}, about)


def _encode_statistics(values: Mapping[Tap, _TapValues], about: Mapping[str, str]) -> MemoryContent:
    sink = _Collector()
    write_statistics(sink, {tap: it.statistics for tap, it in values.items()}, about["fingerprint"])
    return MemoryContent(sink.buffers)


class _Collector:
    """Keeps what a format writes, without a copy."""

    def __init__(self) -> None:
        self.buffers: list[memoryview] = []

    def write(self, data: Any) -> int:  # noqa: ANN401 - any buffer
        view = memoryview(data)
        if view.nbytes:
            self.buffers.append(view)
        return view.nbytes

    def flush(self) -> None:
        """Nothing waits."""
