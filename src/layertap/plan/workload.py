"""How much work a run is: its samples and tokens, the steps they are packed into, and the bytes
that come out.

With a dataset, the run's own code reads it, makes its prompts, tokenises and packs them: what is
counted is exact. For a number of tokens alone, windows of prompts of the usual lengths stand in
(log-normal, as ARC-AGI-1's are), and are packed by the same code; nothing is exact then but the
activations' bytes.
"""

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from statistics import NormalDist

import numpy as np

from layertap.config.plan import PlanConfig
from layertap.core.columns import COLUMNS
from layertap.extract.hosts import Hosts
from layertap.extract.inputs import prompt_maker, read_dataset, window_rules
from layertap.extract.packing import Step, pack_window
from layertap.extract.step import Shape
from layertap.extract.windows import Position, WindowRules, read_windows
from layertap.model.attention import BLOCK
from layertap.model.checkpoint import Checkpoint
from layertap.model.config import MODEL_TYPE
from layertap.plan.assumptions import TYPICAL_MEAN, TYPICAL_MEDIAN, TYPICAL_TEXT_BYTES
from layertap.plan.output_size import OutputCounter, OutputSize, sum_of
from layertap.plan.planned import causal_pairs
from layertap.shards.encode import ShardFormat
from layertap.shards.manifest import Manifest

_COLUMN_BYTES = sum(dtype.itemsize for dtype in COLUMNS.values())
_NORM_BYTES = 4
_STATISTICS_BYTES_A_VALUE = 16


@dataclass(frozen=True)
class Workload:
    """What a run holds."""

    samples: float
    tokens: float
    steps: Mapping[Shape, float]
    """How many steps there are of each shape (rows on all devices, tokens a row)."""
    own_pairs: float
    """(query, key) pairs within samples, in one layer and head."""
    visited_pairs: float
    """The same in the blocks that the kernel of CPUs and GPUs visits, padding included."""
    longest: int
    """The longest sample."""
    output: OutputSize
    counted: bool
    """Whether a dataset was counted; else it is what is usual."""
    example: Step | None
    """A step of the shape that takes most of the run."""
    seconds: float = 0.0
    """How long one host takes for reading, prompts and tokens, if it is like this machine."""
    cpu_seconds: float = 0.0
    """How much of the processor's time that took, of all hosts."""

    @property
    def computed_tokens(self) -> float:
        """Tokens that are computed, padding included."""
        return sum(count * rows * length for (rows, length), count in self.steps.items())

    @property
    def row_pairs(self) -> float:
        """(query, key) pairs where a kernel works through whole rows, whatever they hold."""
        return sum(count * rows * causal_pairs(length) for (rows, length), count in self.steps.items())


def count_dataset(
    config: PlanConfig, checkpoint: Checkpoint, form: ShardFormat, *, devices: int, hosts: int = 1
) -> Workload:
    """Count the dataset exactly, for `hosts` of so many devices each; raises an
    InputError as the run would.

    Each host takes its share of the tasks and writes its own shards; in each window all run as many
    steps of a shape as the one that needs most (extract/hosts.py).
    """
    maker = prompt_maker(config, checkpoint)
    tallies, outputs = [], []
    wall, cpu = 0.0, 0.0
    for index in range(hosts):
        rules = window_rules(config, Hosts(index, hosts), devices)
        windows = read_windows(read_dataset(config), maker, rules, Position())
        manifest = blank_manifest(config, form, maker.tokenizer.special_ids)
        output, tally = OutputCounter(form, manifest, config.shard_bytes, rules.longest), _Tally()
        while True:
            wall, cpu = wall - time.monotonic(), cpu - time.process_time()
            window = next(windows, None)
            wall, cpu = wall + time.monotonic(), cpu + time.process_time()
            if window is None:
                break
            output.add(window)
            tally.add([len(sample.token_ids) for sample in window.samples], window.steps)
        tallies.append(tally)
        outputs.append(output.finish())
    return replace(_workload(tallies), output=sum_of(outputs), counted=True, seconds=wall / hosts, cpu_seconds=cpu)


class _Tally:
    """Sums over one host's windows."""

    def __init__(self) -> None:
        self.lengths: Counter[int] = Counter()
        self.windows: list[Counter[Shape]] = []
        self.examples: dict[Shape, Step] = {}
        self.visited = 0

    def add(self, lengths: Sequence[int], steps: Sequence[Step]) -> None:
        self.lengths.update(lengths)
        self.windows.append(Counter((step.rows, step.length) for step in steps))
        for step in steps:
            self.examples.setdefault((step.rows, step.length), step)
            self.visited += visited_pairs(step)


def _workload(hosts: Sequence[_Tally], part: float = 1.0) -> Workload:
    """What the hosts' tallies add up to, taken `part` times."""
    steps: Counter[Shape] = Counter()
    for windows in zip_longest(*(host.windows for host in hosts), fillvalue=Counter[Shape]()):
        most: Counter[Shape] = Counter()
        for of_host in windows:
            most |= of_host
        steps.update(most)
    lengths = sum((host.lengths for host in hosts), Counter[int]())
    longest_taking = max(steps, key=lambda shape: steps[shape] * math.prod(shape), default=None)
    examples = [host.examples[longest_taking] for host in hosts if longest_taking in host.examples]
    return Workload(
        samples=part * lengths.total(),
        tokens=part * sum(length * count for length, count in lengths.items()),
        steps={(len(hosts) * rows, length): part * count for (rows, length), count in steps.items()},
        own_pairs=part * sum(causal_pairs(length) * count for length, count in lengths.items()),
        visited_pairs=part * sum(host.visited for host in hosts),
        longest=max(lengths, default=0),
        output=OutputSize(),
        counted=False,
        example=examples[0] if examples else None,
    )


def visited_pairs(step: Step) -> int:
    """(query, key) pairs in the blocks that `attend_flash` visits; on GPU about as many."""
    firsts = np.arange(0, step.length, BLOCK)
    needed = np.tile(firsts, (step.rows, 1))  # the first key that each block of queries needs; padding needs itself
    for place in step.placements:
        blocks = slice(-(-place.start // BLOCK), -(-(place.start + place.length) // BLOCK))
        needed[place.row, blocks] = place.start
    keys = firsts + BLOCK - needed // BLOCK * BLOCK
    return int(keys.sum()) * BLOCK


def blank_manifest(config: PlanConfig, form: ShardFormat, special_ids: frozenset[int]) -> Manifest:
    """The run's manifest as far as shards repeat it; any fingerprint has 64 digits."""
    return Manifest(
        fingerprint="0" * 64,
        identity={},
        config={},
        worker_id=config.worker,
        model_path=config.model_path,
        model_type=MODEL_TYPE,
        special_ids=tuple(sorted(special_ids)),
        format=form.name,
        taps=form.taps,
        storage_dtype=form.dtype.name,
    )


def usual_workload(config: PlanConfig, form: ShardFormat, *, devices: int, hosts: int = 1) -> Workload:
    """What `config.tokens` of usual prompts are, for `hosts` of so many devices each."""
    assert config.tokens is not None
    rules = window_rules(config, Hosts(0, hosts), devices)
    lengths = typical_lengths(rules)
    share = config.tokens / hosts
    lengths = lengths[: max(1, round(len(lengths) * share / sum(lengths)))]  # less than a window
    tally, part = _Tally(), share / sum(lengths)
    tally.add(lengths, pack_window(lengths, rules.ladder, rules.batch_size, rules.devices))
    work = _workload([tally] * hosts, part)
    return replace(work, output=_usual_output(config.tokens, work.samples, form, config.shard_bytes))


def typical_lengths(rules: WindowRules) -> list[int]:
    """A window of prompts of the usual lengths, long and short in turn, none over the limit."""
    spread = math.sqrt(2 * math.log(TYPICAL_MEAN.value / TYPICAL_MEDIAN.value))
    quantiles = NormalDist(math.log(TYPICAL_MEDIAN.value), spread)
    count = rules.window_samples
    places = [(number * 0.6180339887 + 0.5 / count) % 1 for number in range(count)]  # evenly spread at any number
    drawn = [math.exp(quantiles.inv_cdf(min(max(place, 1e-4), 1 - 1e-4))) for place in places]
    return [max(1, min(round(length), rules.longest)) for length in drawn]


def _usual_output(tokens: int, samples: float, form: ShardFormat, shard_bytes: int) -> OutputSize:
    activations = tokens * form.bytes_per_token
    shards = max(1, math.ceil(activations / shard_bytes))
    taps, text = len(form.taps), TYPICAL_TEXT_BYTES.value
    repeats = taps if form.name == "pickle" else 1  # of what is the same at all taps
    beside = taps * tokens * _NORM_BYTES + repeats * (tokens * _COLUMN_BYTES + samples * text)
    return OutputSize(
        activations=activations,
        shard_files=activations + round(beside),
        statistics_files=shards * sum(form.taps.values()) * _STATISTICS_BYTES_A_VALUE,
        shards=shards,
        files=shards * (len(form.files(1)) + 1),
    )
