"""The exact size of a run's output, by letting the run's own writer write into a sink that only counts.

Activations are zeros of the right shape, all of them views of one buffer that is never touched: the pickler and the
safetensors writer hand large buffers on without a copy, so a terabyte is counted in seconds. What compression makes of
it depends on the values, and is not known here.
"""

import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from pickle import PickleBuffer

import numpy as np

from layertap.core.taps import Tap
from layertap.extract.packing import Placement
from layertap.extract.stored import stored_sample
from layertap.extract.windows import Window
from layertap.objects.files import Checksummed
from layertap.shards.flags import Flags
from layertap.shards.manifest import Manifest
from layertap.shards.samples import Activation, StoredSample
from layertap.shards.statistics import no_statistics
from layertap.shards.statistics_files import write_statistics
from layertap.shards.writer import ShardBuffer, ShardFormat, write_samples


@dataclass(frozen=True)
class OutputSize:
    """Bytes of a run's output; the manifest comes on top."""

    activations: int = 0
    """Activations alone."""
    shard_files: int = 0
    """The files that hold them, uncompressed, with headers, token ids, flags and what is told of each sample."""
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
        self._manifest = manifest
        self._buffer = ShardBuffer(form, shard_bytes)
        self._zeros = _Zeros(np.zeros((longest, form.hidden_size), form.dtype), np.zeros(longest, np.uint8))
        self._bytes: Counter[str] = Counter()
        self._shards = 0

    def add(self, window: Window) -> None:
        """Count a window's samples."""
        for step in window.steps:
            for place in step.placements:
                sample = self._zeros.sample(window, place, self._form.taps)
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
        flags = dict.fromkeys(self._form.taps, self._zeros.flags_of(samples))
        for file in self._form.files(self._shards):
            sink = _Counting()
            write_samples(sink, file, self._form, self._manifest, samples, flags)
            self._bytes.update(shards=sink.size, files=1)
        sink = _Counting()
        nothing = no_statistics(self._form.hidden_size)
        write_statistics(sink, dict.fromkeys(self._form.taps, nothing), self._manifest.fingerprint)
        tokens = sum(sample.tokens for sample in samples)
        self._bytes.update(statistics=sink.size, files=1, activations=tokens * self._form.bytes_per_token)


class _Counting(Checksummed):
    """Counts, and neither sums up nor writes."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO())

    def write(self, data: "bytes | memoryview[int] | PickleBuffer") -> int:
        count = memoryview(data).nbytes
        self.size += count
        return count


class _Stored(StoredSample):
    """Zeros need no conversion, and no look whether they fit into float16."""

    def stored(self, tap: Tap, dtype: np.dtype) -> Activation:
        return self.activations[tap]


@dataclass(frozen=True, eq=False)
class _Zeros:
    activations: np.ndarray
    flags: np.ndarray

    def sample(self, window: Window, place: Placement, taps: Sequence[Tap]) -> StoredSample:
        at_start = replace(place, row=0, start=0)
        made = stored_sample(window, at_start, {tap: {0: self.activations} for tap in taps})
        return _Stored(**vars(made))

    def flags_of(self, samples: Sequence[StoredSample]) -> list[Flags]:
        return [self.flags[: sample.tokens] for sample in samples]
