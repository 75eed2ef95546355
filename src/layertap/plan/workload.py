"""Count the work of a run: its samples and tokens, their packing into steps, and the output bytes.

With a dataset, the run's own code reads it, makes its prompts, tokenises and packs them, so the
counts are exact. Its formats write to a sink that only counts. Activations are zeros of the right
shape, views of buffers that are never touched, and large buffers are passed on without a copy, so a
terabyte is counted in seconds. The size after compression depends on the values.

With only a number of tokens, usual.py makes up the prompts.
"""

import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from itertools import zip_longest
from typing import Any

import numpy as np

from layertap.config.plan import PlanConfig
from layertap.core.sample import Sample
from layertap.model.checkpoint import Checkpoint
from layertap.pipeline.hosts import Hosts
from layertap.pipeline.inputs import prompt_maker, read_dataset, window_rules
from layertap.pipeline.kept import KeptTokens
from layertap.pipeline.packing import Step, prefix_row
from layertap.pipeline.prefix import find_prefixes
from layertap.pipeline.step import Shape
from layertap.pipeline.windows import Position, read_windows
from layertap.plan.planned import causal_pairs
from layertap.shards.encode import write_samples
from layertap.shards.form import ShardFormat
from layertap.shards.manifest import Manifest
from layertap.shards.quantised import is_quantised
from layertap.shards.statistics import no_statistics
from layertap.shards.statistics_files import write_statistics
from layertap.shards.values import SampleValues, TapValues
from layertap.shards.writer import ShardBuffer


@dataclass(frozen=True)
class OutputSize:
    """Bytes of a run's output, without the manifest."""

    activations: int = 0
    """Bytes of the activations alone."""
    shard_files: int = 0
    """Bytes of the files that hold them, uncompressed, with headers, columns and sample facts."""
    statistics_files: int = 0
    shards: int = 0
    files: int = 0

    @property
    def uncompressed(self) -> int:
        """Bytes of all files."""
        return self.shard_files + self.statistics_files


@dataclass(frozen=True)
class Workload:
    """The work of a run."""

    samples: float
    tokens: float
    steps: Mapping[Shape, float]
    """How many steps there are of each shape (rows on all devices, tokens per row)."""
    shared_tokens: float
    """Tokens of the prefix, which are not computed for each sample."""
    own_pairs: float
    """(query, key) pairs within samples, in one layer and head, without those with the prefix."""
    prefix_pairs: float
    """(query, key) pairs with the prefix."""
    prefix_rows: float
    """Tokens of the rows in which prefixes are computed, once on each device."""
    longest: int
    """The longest sample."""
    output: OutputSize
    counted: bool
    """Whether a dataset was counted; otherwise these are typical numbers."""
    seconds: float = 0.0
    """How long one host like this machine needs for reading, prompts and tokens."""

    @property
    def computed_tokens(self) -> float:
        """How many tokens are computed, including padding."""
        return self.prefix_rows + sum(count * rows * length for (rows, length), count in self.steps.items())

    @property
    def row_pairs(self) -> float:
        """(query, key) pairs if a kernel computes whole rows, whatever they hold."""
        of_rows = sum(count * rows * causal_pairs(length) for (rows, length), count in self.steps.items())
        return of_rows + self.prefix_pairs

    @property
    def sample_pairs(self) -> float:
        """(query, key) pairs if a kernel skips what is of other samples."""
        return self.own_pairs + self.prefix_pairs

    @property
    def real_share(self) -> float:
        """The share of computed tokens that are not padding."""
        return (self.tokens - self.shared_tokens) / max(self.computed_tokens, 1)


def count_dataset(
    config: PlanConfig, checkpoint: Checkpoint, form: ShardFormat, *, devices: int, hosts: int = 1
) -> Workload:
    """Count the dataset exactly, for `hosts` hosts with `devices` devices each.

    Each host takes its share of the tasks and writes its own shards. In each window all hosts run
    as many steps of a shape as the host that needs most (pipeline/hosts.py). Raises an InputError
    as the run would.
    """
    maker = prompt_maker(config, checkpoint)
    kept, prefixes = KeptTokens(config.keep_tokens), find_prefixes(maker, share=config.share_prefix)
    tallies, outputs, seconds = [], [], 0.0
    for index in range(hosts):
        rules = window_rules(config, Hosts(index, hosts), devices, checkpoint.config.context, prefixes)
        windows = read_windows(read_dataset(config), maker, rules, Position())
        manifest = blank_manifest(config, checkpoint.config.model_type, form, maker.tokenizer.special_ids)
        output, tally = OutputCounter(form, manifest, config.shard_bytes, rules.longest), Tally()
        begun, left = time.monotonic(), config.max_tokens_total or sys.maxsize
        while left > 0 and (window := next(windows, None)) is not None:
            seconds += time.monotonic() - begun
            stored = [kept.of(sample) for sample in window.samples]
            steps = list(_up_to(left, window.steps, stored))
            left -= output.add(stored, steps)
            tally.add(
                [(place.length, prefixes.length(step.prefix)) for step in steps for place in step.placements], steps
            )
            begun = time.monotonic()
        tallies.append(tally)
        outputs.append(output.finish())
    whole = OutputSize(*map(sum, zip(*map(astuple, outputs), strict=True)))
    used = {before for tally in tallies for _, before in tally.lengths if before}
    rows = hosts * devices * sum(map(prefix_row, used))
    return replace(add_up(tallies), output=whole, counted=True, seconds=seconds / hosts, prefix_rows=rows)


class OutputCounter:
    """Counts shard by shard, for samples in the order of the run."""

    def __init__(self, form: ShardFormat, manifest: Manifest, shard_bytes: int, longest: int) -> None:
        self._form = replace(form, compress=False)
        self._about = {name: getattr(manifest, name) for name in ("model_path", "model_type", "fingerprint")}
        self._buffer = ShardBuffer(form, shard_bytes)
        self._zeros = {width: np.zeros((longest, width), form.dtype) for width in set(form.taps.values())}
        self._norms = np.zeros(longest, np.float32)
        self._bytes: Counter[str] = Counter()
        self._shards = 0

    def add(self, samples: Sequence[Sample], steps: Sequence[Step]) -> int:
        """Count the samples of a window in these steps; return how many tokens they have."""
        placed = [samples[place.sample] for step in steps for place in step.placements]
        for sample in placed:
            if not sample.tokens:
                continue
            if not self._buffer.has_room(sample):
                self._close()
            self._buffer.add(sample)
        return sum(sample.tokens for sample in placed)

    def finish(self) -> OutputSize:
        """Close the last shard, and return the sum."""
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

    def _values(self, samples: Iterable[Sample], width: int) -> TapValues:
        """Return stand-ins for activations, norms and scales at a tap of this width."""
        spans = [slice(sample.tokens) for sample in samples]
        quantised = is_quantised(self._form.dtype)
        kept = ((self._zeros[width][span], self._norms[span]) for span in spans)
        return TapValues(width, [SampleValues(*it, it[1] if quantised else None) for it in kept])


class _CountingSink:
    def __init__(self) -> None:
        self.size = 0

    def write(self, data: Any) -> None:  # noqa: ANN401 - any buffer
        self.size += memoryview(data).nbytes


def _up_to(tokens: int, steps: Sequence[Step], samples: Sequence[Sample]) -> Iterator[Step]:
    """Yield the steps of a run until it has stored this many tokens, without samples left out."""
    for step in steps:
        if tokens <= 0:
            return
        taken = []
        for place in step.placements:
            if tokens > 0:
                taken.append(place)
                tokens -= samples[place.sample].tokens
        yield replace(step, placements=tuple(taken))


class Tally:
    """Sums over one host's windows."""

    def __init__(self) -> None:
        self.lengths: Counter[tuple[int, int]] = Counter()
        """How many samples there are with so many tokens behind so many of a prefix."""
        self.windows: list[Counter[Shape]] = []

    def add(self, lengths: Sequence[tuple[int, int]], steps: Sequence[Step]) -> None:
        """Add a window: the own tokens and the prefix of each sample, and the steps."""
        self.lengths.update(lengths)
        self.windows.append(Counter((step.rows, step.length) for step in steps))


def add_up(hosts: Sequence[Tally], part: float = 1.0) -> Workload:
    """Add up the hosts' tallies, multiplied by `part`."""
    steps: Counter[Shape] = Counter()
    for windows in zip_longest(*(host.windows for host in hosts), fillvalue=Counter[Shape]()):
        most: Counter[Shape] = Counter()
        for of_host in windows:
            most |= of_host
        steps.update(most)
    lengths = sum((host.lengths for host in hosts), Counter[tuple[int, int]]())
    return Workload(
        samples=part * lengths.total(),
        tokens=part * sum((own + before) * count for (own, before), count in lengths.items()),
        shared_tokens=part * sum(before * count for (_, before), count in lengths.items()),
        steps={(len(hosts) * rows, length): part * count for (rows, length), count in steps.items()},
        own_pairs=part * sum(causal_pairs(own) * count for (own, _), count in lengths.items()),
        prefix_pairs=part * sum(own * before * count for (own, before), count in lengths.items()),
        prefix_rows=0,
        longest=max(map(sum, lengths), default=0),
        output=OutputSize(),
        counted=False,
    )


def blank_manifest(config: PlanConfig, model_type: str, form: ShardFormat, special_ids: frozenset[int]) -> Manifest:
    """Make a manifest with the parts that shards repeat; any fingerprint has 64 digits."""
    return Manifest(
        fingerprint="0" * 64,
        identity={},
        config={},
        worker_id=config.worker,
        model_path=config.model_path,
        model_type=model_type,
        special_ids=tuple(sorted(special_ids)),
        format=form.name,
        taps=form.taps,
        storage_dtype=form.stored_as,
    )
