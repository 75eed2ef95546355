"""Encoding: from some samples to the bytes of a shard, as a pure function.

`encode` reads and writes no file and knows no device. Its result depends on its arguments, not on
the number of threads or on earlier calls. So shards may be encoded in any order; they are appended
in their own order later (writer.py). Only norms and statistics may differ in a last digit: between
processors, between versions of numpy, and with numba or without.

Each thread converts and measures some samples at one tap, a little ahead of the format, which takes
them in its own order. A value is loaded into the cache once for its conversion, its norm and its
statistics. To write pickles, each thread compresses one mebibyte at a time. The calling thread only
puts buffers in order and computes their checksum.

Memory holds the bytes of the shard as it will be stored. Values that need no conversion are views
of the samples. Each thread adds two pieces of 16 MiB (or a sample, where that is more) of converted
values, or two mebibytes of a pickle.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import Any

import numpy as np

from layertap.core.sample import Sample
from layertap.core.taps import Tap
from layertap.objects.content import MemoryContent
from layertap.objects.files import crc32c_extended
from layertap.shards.form import ShardFormat, statistics_path
from layertap.shards.loops import loops_pay
from layertap.shards.manifest import ShardEntry, StoredFile, index_ranges
from layertap.shards.pickles import write_pickle
from layertap.shards.quantised import is_quantised, quantise
from layertap.shards.rounding import measure_read, measure_sample
from layertap.shards.safetensors import write_safetensors
from layertap.shards.scratch import Scratch
from layertap.shards.statistics import TapStatistics, merge_all
from layertap.shards.statistics_files import KIND, write_statistics
from layertap.shards.tensors import Sink
from layertap.shards.threads import Threads, working
from layertap.shards.values import SampleValues, TapValues

_PIECE_VALUES = 1 << 22
"""How many values a thread converts and measures before it takes more work."""
_SCRATCH = Scratch()
"""For the values that readers of quantised ones get."""


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
    tokens = sum(sample.tokens for sample in samples)
    form = replace(form, by_loops=loops_pay(tokens * sum(form.taps.values())))
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
    entry = ShardEntry(
        index=index,
        samples=len(samples),
        tokens=tokens,
        sample_idx=index_ranges(sample.sample_idx for sample in samples),
        files=tuple(files),
        nonfinite=sum(tokens - it.count for it in statistics.values()),
    )
    return EncodedShard(entry, contents)


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
    """Store some samples at a tap. Converted values get one array, which has large pages."""
    tap, samples = piece
    ends = np.cumsum([sample.tokens for sample in samples])
    memory = np.empty((ends[-1], form.taps[tap]), form.dtype)  # costs nothing if nothing is written
    return [_store(sample, tap, form, into) for sample, into in zip(samples, np.split(memory, ends[:-1]), strict=True)]


def _store(sample: Sample, tap: Tap, form: ShardFormat, into: np.ndarray) -> tuple[SampleValues, TapStatistics]:
    """Return what is stored of a sample at a tap, and the statistics of the values as read."""
    if not is_quantised(form.dtype):
        activation, norms, statistics = measure_sample(sample, tap, form, into)
        return SampleValues(activation, norms), statistics
    (read,) = _SCRATCH.rows(into.shape[1], len(into))
    made = quantise(sample.activations[tap], form.dtype, by_loops=form.by_loops, codes=into, values=read)
    norms, statistics = measure_read(made.values, sample, tap, form)
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
