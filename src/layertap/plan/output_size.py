"""The exact size of a run's output: the run's own formats write into a sink that only counts.

Activations are zeros of the right shape, views of buffers that are never touched. The formats hand
large buffers on without a copy, so a terabyte is counted in seconds. What compression makes of it
depends on the values, and is not known here.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np

from layertap.core.sample import Sample
from layertap.extract.windows import Window
from layertap.shards.encode import ShardFormat, write_samples
from layertap.shards.manifest import Manifest
from layertap.shards.statistics import no_statistics
from layertap.shards.statistics_files import write_statistics
from layertap.shards.writer import ShardBuffer


@dataclass(frozen=True)
class OutputSize:
    """Bytes of a run's output; the manifest comes on top."""

    activations: int = 0
    """Activations alone."""
    shard_files: int = 0
    """The files that hold them, uncompressed, with headers, columns and the facts about samples."""
    statistics_files: int = 0
    shards: int = 0
    files: int = 0

    @property
    def uncompressed(self) -> int:
        """All files."""
        return self.shard_files + self.statistics_files


def sum_of(sizes: Iterable[OutputSize]) -> OutputSize:
    """The output of several hosts."""
    return OutputSize(*map(sum, zip(*map(astuple, sizes), strict=True)))


class OutputCounter:
    """Counts shard by shard, as samples come in the order in which the run emits them."""

    def __init__(self, form: ShardFormat, manifest: Manifest, shard_bytes: int, longest: int) -> None:
        self._form = replace(form, compress=False)
        self._about = {name: getattr(manifest, name) for name in ("model_path", "model_type", "fingerprint")}
        self._buffer = ShardBuffer(form, shard_bytes)
        self._zeros = {width: np.zeros((longest, width), form.dtype) for width in set(form.taps.values())}
        self._norms = np.zeros(longest, np.float32)
        self._bytes: Counter[str] = Counter()
        self._shards = 0

    def add(self, window: Window) -> None:
        """Count a window's samples."""
        for step in window.steps:
            for place in step.placements:
                sample = window.samples[place.sample]
                if not self._buffer.has_room(sample):
                    self._close()
                self._buffer.add(sample)

    def finish(self) -> OutputSize:
        """The sum, with the last shard."""
        if len(self._buffer):
            self._close()
        counted = self._bytes
        return OutputSize(
            counted["activations"], counted["shards"], counted["statistics"], self._shards, counted["files"]
        )

    def _close(self) -> None:
        samples = self._buffer.take()
        self._shards += 1
        values = {tap: self._values(samples, width) for tap, width in self._form.taps.items()}
        for site in self._form.files(self._shards).values():
            sink = _CountingSink()
            write_samples(sink, site, samples, values, self._form, self._about)
            self._bytes.update(shards=sink.size, files=1)
        sink = _CountingSink()
        statistics = {tap: no_statistics(width) for tap, width in self._form.taps.items()}
        write_statistics(sink, statistics, self._about["fingerprint"])
        tokens = sum(sample.tokens for sample in samples)
        self._bytes.update(statistics=sink.size, files=1, activations=tokens * self._form.bytes_per_token)

    def _values(self, samples: Iterable[Sample], width: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Activations and norms of the samples at a tap of this width."""
        lengths = [sample.tokens for sample in samples]
        return [self._zeros[width][:length] for length in lengths], [self._norms[:length] for length in lengths]


class _CountingSink:
    def __init__(self) -> None:
        self.size = 0

    def write(self, data: Any) -> None:  # noqa: ANN401 - any buffer
        self.size += memoryview(data).nbytes
