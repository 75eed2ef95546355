"""Encoding: from some samples to the bytes of a shard, as a pure function.

`encode` reads and writes no file and knows no device. Its result depends on its arguments alone,
not on the number of threads. So shards may be encoded in any order; they are appended in their own
order later (writer.py).

Each thread converts and measures some samples at one tap, a little ahead of the format, which takes
them in its own order. A value is loaded into the cache once for its conversion, its norm and its
statistics. To write pickles, each thread compresses one mebibyte at a time. The calling thread only
puts buffers in order and computes their checksum.

Memory holds the bytes of the shard as it will be stored. Values that need no conversion are views
of the samples. Each thread adds two pieces of 16 MiB (or a sample, where that is more) of converted
values, or two mebibytes of a pickle.

Norms describe the values as stored: values are rounded first and measured afterwards.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import Any, Literal

import numpy as np

from layertap.core.columns import Norms
from layertap.core.sample import Activation, Sample
from layertap.core.taps import Site, Tap
from layertap.errors import StorageError
from layertap.objects.content import MemoryContent
from layertap.objects.files import crc32c_extended
from layertap.shards.manifest import ShardEntry, StoredFile, index_ranges
from layertap.shards.measuring import measure_in_float32
from layertap.shards.pickles import write_pickle
from layertap.shards.quantised import dtype_name, is_quantised, quantise
from layertap.shards.safetensors import write_safetensors
from layertap.shards.statistics import TapStatistics, merge_all
from layertap.shards.statistics_files import KIND, write_statistics
from layertap.shards.tensors import Sink
from layertap.shards.threads import Threads, working
from layertap.shards.values import SampleValues, TapValues

_PIECE_VALUES = 1 << 22
"""How many values a thread converts and measures before it takes more work."""


@dataclass(frozen=True)
class ShardFormat:
    """How to encode shards."""

    taps: Mapping[Tap, int]
    """The taps to store, with the width of each."""
    dtype: np.dtype
    compress: bool
    """Whether to gzip pickles. safetensors files are never compressed."""
    name: Literal["pickle", "safetensors"] = "pickle"
    keep_nonfinite: bool = False
    """True: store and count activations with a NaN or an infinity. False: raise StorageError."""

    @property
    def stored_as(self) -> str:
        """The dtype's name in the manifest."""
        return dtype_name(self.dtype)

    @property
    def bytes_per_token(self) -> int:
        """How many bytes of activations a token adds, before compression."""
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
        """Map each path of shard `index` (from 1) that holds activations to its site.

        The site is None for a file that holds all sites.
        """
        if self.name == "safetensors":
            return {f"shard_{index:04d}.safetensors": None}
        name = f"shard_{index:04d}.pkl" + (".gz" if self.compress else "")
        alone = len(self.sites) == 1
        return {name if alone else f"{site}/{name}": site for site in self.sites}


def statistics_path(index: int) -> str:
    """Return the path of the statistics of shard `index`."""
    return f"statistics/shard_{index:04d}.safetensors"


@dataclass(frozen=True)
class EncodedShard:
    """A shard as it will be stored: its entry in the manifest, and the content of each file."""

    entry: ShardEntry
    contents: Mapping[str, MemoryContent]
    """By path."""


def encode(
    index: int, samples: Sequence[Sample], form: ShardFormat, about: Mapping[str, str], threads: int | None = None
) -> EncodedShard:
    """Encode these samples, at least one, as shard `index`.

    `about` holds facts about the run, which go into the metadata of safetensors files. `threads`
    is the number of threads; None means one for each core. Raises StorageError where a finite value
    does not fit into float16, or for a NaN or an infinity that the run does not keep.
    """
    measured: dict[Tap, list[TapStatistics]] = {tap: [] for tap in form.taps}
    contents: dict[str, MemoryContent] = {}
    with working(threads) as workers:
        for path, site in form.files(index).items():
            contents[path] = _encode_file(site, samples, measured, form, about, workers)
    files = [
        StoredFile(path, "activations", site, contents[path].size, contents[path].crc32c)
        for path, site in form.files(index).items()
    ]
    statistics = {tap: merge_all(parts, form.taps[tap]) for tap, parts in measured.items()}
    path = statistics_path(index)
    contents[path] = _encode_statistics(statistics, about)
    files.append(StoredFile(path, KIND, None, contents[path].size, contents[path].crc32c))
    tokens = sum(sample.tokens for sample in samples)
    entry = ShardEntry(
        index=index,
        samples=len(samples),
        tokens=tokens,
        sample_idx=index_ranges(sample.sample_idx for sample in samples),
        files=tuple(files),
        nonfinite=sum(tokens - it.count for it in statistics.values()),
    )
    return EncodedShard(entry, contents)


def measure_sample(
    sample: Sample, tap: Tap, form: ShardFormat, *, widen: bool = False
) -> tuple[Activation, Norms, TapStatistics]:
    """Return what a reader gets of a sample at a tap: the values, their norms, their statistics.

    Values that the storage dtype holds exactly are returned as they are, or in the storage dtype
    with `widen`. Quantised values are returned in float32. Raises StorageError where a finite value
    does not fit into float16, or for a NaN or an infinity that the run does not keep.
    """
    if is_quantised(form.dtype):
        values = quantise(sample.activations[tap], form.dtype).values
        return values, *_measure_read(values, sample, tap, form)
    rounded = round_activation(sample, tap, form.dtype)
    widened = np.empty(rounded.shape, np.float32) if widen and rounded.dtype != form.dtype else None
    measured = _measure_read(rounded, sample, tap, form, widened)
    return rounded if widened is None else widened, *measured


def _measure_read(
    values: Activation, sample: Sample, tap: Tap, form: ShardFormat, widened: np.ndarray | None = None
) -> tuple[Norms, TapStatistics]:
    """Measure the norms and statistics of values as they will be read."""
    statistics, norms = measure_in_float32(values, sample.sample_idx, widened)
    require_finite(sample, tap, norms, form)
    if statistics.count:
        positions = sample.columns["positions"]
        statistics = replace(statistics, max_position=int(positions[statistics.max_position]))
    return norms.astype(np.float32), statistics


def require_finite(sample: Sample, tap: Tap, norms: Norms, form: ShardFormat) -> None:
    """Raise StorageError for a NaN or an infinity that the run does not keep; the norms show it."""
    finite = np.isfinite(norms)
    if not form.keep_nonfinite and not finite.all():
        raise _nonfinite(sample, tap, sample.columns["positions"][~finite], form)


def round_activation(sample: Sample, tap: Tap, dtype: np.dtype) -> Activation:
    """Round the activation to values that `dtype` holds exactly.

    Raises StorageError where a finite value does not fit into float16.
    """
    activation = sample.activations[tap]
    if np.can_cast(activation.dtype, dtype):
        return activation
    with np.errstate(over="ignore", invalid="ignore"):  # overflow is reported below; NaN stays NaN
        rounded = np.asarray(activation, dtype)
        too_large = dtype == np.float16 and (np.isinf(rounded) & np.isfinite(activation)).any()
    if too_large:
        raise StorageError(
            f"{_place(sample, tap)}: a value is too large for float16 (65504); use --storage_dtype float32 or bfloat16"
        )
    return rounded


def _nonfinite(sample: Sample, tap: Tap, tokens: np.ndarray, form: ShardFormat) -> StorageError:
    """Return the error for the tokens at these positions, which have a NaN or an infinity."""
    kept = f"such tokens of {form.stored_as} as NaN" if is_quantised(form.dtype) else "such activations as they are"
    return StorageError(
        f"{_place(sample, tap)}, token {tokens[0]}: the activation has a NaN or an infinity, as have those of"
        f" {len(tokens)} of its {sample.tokens} tokens there. A sound model gives none: look for it in the weights."
        f" To store {kept}, and have them counted, pass --on_nonfinite keep"
    )


def _place(sample: Sample, tap: Tap) -> str:
    return f"task {sample.task_id}, sample {sample.sample_idx}, layer {tap.layer}, {tap.site}"


def _encode_file(
    site: str | None,
    samples: Sequence[Sample],
    measured: Mapping[Tap, list[TapStatistics]],
    form: ShardFormat,
    about: Mapping[str, str],
    workers: Threads,
) -> MemoryContent:
    """Encode the file of a site, or of all sites, and add each sample's statistics to the lists."""
    taps = [tap for tap in form.taps if site in (None, tap.site)]
    pieces = [(tap, piece) for tap in taps for piece in _pieces(samples, form.taps[tap])]
    done = workers.map(partial(_store_piece, form=form), pieces)
    measured_samples = chain.from_iterable(done)
    values = {tap: TapValues(form.taps[tap], _noted(measured_samples, len(samples), measured[tap])) for tap in taps}
    sink = _Collector()
    try:
        write_samples(sink, site, samples, values, form, about, workers)
    finally:
        done.close()
    return sink.content()


def _pieces(samples: Sequence[Sample], width: int) -> Iterator[list[Sample]]:
    """Split the samples into pieces that are large enough for one turn of a thread."""
    piece: list[Sample] = []
    for sample in samples:
        piece.append(sample)
        if sum(one.tokens for one in piece) * width >= _PIECE_VALUES:
            yield piece
            piece = []
    if piece:
        yield piece


def _store_piece(piece: tuple[Tap, Sequence[Sample]], form: ShardFormat) -> list[tuple[SampleValues, TapStatistics]]:
    tap, samples = piece
    return [_store(sample, tap, form) for sample in samples]


def _store(sample: Sample, tap: Tap, form: ShardFormat) -> tuple[SampleValues, TapStatistics]:
    """Return what is stored of a sample at a tap, and the statistics of the values as read."""
    if not is_quantised(form.dtype):
        activation, norms, statistics = measure_sample(sample, tap, form, widen=True)
        return SampleValues(activation, norms), statistics
    made = quantise(sample.activations[tap], form.dtype)
    norms, statistics = _measure_read(made.values, sample, tap, form)
    return SampleValues(made.codes, norms, made.scales), statistics


def _noted(
    done: Iterator[tuple[SampleValues, TapStatistics]], samples: int, statistics: list[TapStatistics]
) -> Iterator[SampleValues]:
    """Yield the values of the next samples, and add their statistics to the list."""
    for values, part in islice(done, samples):
        statistics.append(part)
        yield values


def write_samples(
    sink: Sink,
    site: str | None,
    samples: Sequence[Sample],
    values: Mapping[Tap, TapValues],
    form: ShardFormat,
    about: Mapping[str, str],
    workers: Threads | None = None,
) -> None:
    """Write one file of a shard from these values, which are taken tap after tap.

    `site` comes from `ShardFormat.files`. `workers` compress the file where `form` says so.
    """
    if site is None:
        write_safetensors(sink, samples, values, form.dtype, about)
    else:
        layers = {tap.layer: it for tap, it in values.items() if tap.site == site}
        write_pickle(sink, samples, layers, workers if form.compress else None)


def _encode_statistics(statistics: Mapping[Tap, TapStatistics], about: Mapping[str, str]) -> MemoryContent:
    sink = _Collector()
    write_statistics(sink, statistics, about["fingerprint"])
    return sink.content()


class _Collector:
    """Keeps what a format writes, without a copy, and computes its checksum while threads work."""

    def __init__(self) -> None:
        self._buffers: list[memoryview] = []
        self._crc = 0

    def write(self, data: Any) -> int:  # noqa: ANN401 - any buffer
        view = memoryview(data).cast("B")
        if view.nbytes:
            self._crc = crc32c_extended(self._crc, view)
            self._buffers.append(view)
        return view.nbytes

    def content(self) -> MemoryContent:
        """Return everything that was written."""
        return MemoryContent(self._buffers, f"{self._crc:08x}")
