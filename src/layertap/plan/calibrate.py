"""How fast this machine is, measured for some seconds by the run's own code.

A few layers of the model's shape, with random weights, run one of the run's own steps: once as it
is packed, once with its samples cut into blocks. The difference is attention's, so two rates come
out, of tokens and of (query, key) pairs. Then the run's own writer commits the step's activations
as a shard, into a temporary folder: that gives the rate of encoding and of the disk, and what gzip
makes of them (real activations compress a little differently).

Everything shares the processor's cores, so what counts beside the clock is how many seconds of them
each stage takes.
"""

import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Int32

from layertap.core.columns import token_columns
from layertap.core.sample import Sample
from layertap.extract.packing import Placement, Step, batch_arrays
from layertap.extract.step import HostOutputs, StepProgram, plan_for, resolve_taps, transfer_dtype
from layertap.model.attention import BLOCK
from layertap.model.qwen2 import Qwen2
from layertap.objects import open_store
from layertap.plan.planned import PlannedRun, forward_flops
from layertap.plan.workload import Workload, blank_manifest, visited_pairs
from layertap.shards.encode import ShardFormat
from layertap.shards.writer import ShardWriter

_FLOPS = 3e12
"""A measured step is about so many operations: seconds."""
_COMMITTED_BYTES = 64e6
_WEIGHT_SCALE = 0.02
_VOCABULARY = 512
_REPEATS = 2
_TELLING_SHARE = 0.1


@dataclass(frozen=True)
class Spent:
    """Seconds by the clock, and of all cores together."""

    wall: float
    cpu: float

    def times(self, factor: float) -> "Spent":
        """So many times as much."""
        return Spent(self.wall * factor, self.cpu * factor)

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(self.wall + other.wall, self.cpu + other.cpu)


@dataclass(frozen=True)
class Speed:
    """What was measured here."""

    layers: int
    """How many layers were run."""
    token: Spent
    """Of one token in one layer, without attention."""
    pair: Spent
    """Of one (query, key) pair in one layer."""
    byte: Spent
    """Of one byte of uncompressed shard, committed."""
    compile_seconds: float
    """Of one layer in one program."""
    ratio: float
    """What gzip divided the shard by; 1 without."""
    flops: float
    """Operations a second of the measured step."""


def measure_speed(run: PlannedRun, work: Workload) -> Speed:
    """Measure; takes some seconds."""
    assert work.example is not None
    layers = _layers_to_run(run, work.example)
    step = _affordable(run, work.example)
    model = _random_model(run, layers)
    taps = resolve_taps(range(layers), run.form.sites, layers)
    plan = plan_for("cpu", transfer_dtype(run.compute_dtype, run.form.dtype))
    program = StepProgram(nnx.eval_shape(lambda: model), taps, plan)
    with closing(program):
        compiling = _spent(lambda: program.compile((step.rows, step.length)).result())
    outputs, packed = _run(program, model, step)
    _, cut = _run(program, model, _cut(step))
    token, pair = _rates(step, layers, packed, cut)
    byte, ratio = _commit(run, replace(run.form, taps={tap: run.model.width(tap.site) for tap in taps}), step, outputs)
    flops = forward_flops(run.model, layers, step.computed_tokens, visited_pairs(step)) / packed.wall
    return Speed(layers, token, pair, byte, compiling.wall / layers, ratio, flops)


def _rates(step: Step, layers: int, packed: Spent, cut: Spent) -> tuple[Spent, Spent]:
    """Of a token and of a pair in one layer, from the step as it is packed and cut into blocks."""
    pairs = visited_pairs(step)
    fewer = pairs - visited_pairs(_cut(step))
    if fewer < _TELLING_SHARE * pairs:  # samples are short: their attention counts as the tokens' own
        return packed.times(1 / (step.computed_tokens * layers)), Spent(0.0, 0.0)
    pair = Spent(max(packed.wall - cut.wall, 0.0), max(packed.cpu - cut.cpu, 0.0)).times(1 / (fewer * layers))
    return (packed + pair.times(-pairs * layers)).times(1 / (step.computed_tokens * layers)), pair


def _layers_to_run(run: PlannedRun, step: Step) -> int:
    one = forward_flops(run.model, 1, step.computed_tokens, visited_pairs(step))
    return max(1, min(run.num_layers, int(_FLOPS / one)))


def _affordable(run: PlannedRun, step: Step) -> Step:
    """The step, or its first rows where one layer of it would take too long."""
    one_row = forward_flops(run.model, 1, step.length, visited_pairs(step) / step.rows)
    rows = max(1, min(step.rows, int(_FLOPS / one_row)))
    places = [place for place in step.placements if place.row < rows]
    return Step(rows, step.length, tuple(replace(place, sample=number) for number, place in enumerate(places)))


def _cut(step: Step) -> Step:
    """The same tokens in samples of one block of queries, of which attention visits one each."""
    blocks = list(product(range(step.rows), range(0, step.length, BLOCK)))
    places = [Placement(n, row, start, min(BLOCK, step.length - start)) for n, (row, start) in enumerate(blocks)]
    return Step(step.rows, step.length, tuple(places))


def _random_model(run: PlannedRun, layers: int) -> Qwen2:
    model = Qwen2(replace(run.model, vocab_size=_VOCABULARY), layers, jnp.dtype(run.compute_dtype))
    keys = iter(jax.random.split(jax.random.key(0), len(jax.tree.leaves(model))))

    def drawn(leaf: jax.Array) -> jax.Array:
        if leaf.ndim < 2:
            return leaf
        return (_WEIGHT_SCALE * jax.random.normal(next(keys), leaf.shape, jnp.float32)).astype(leaf.dtype)

    return jax.tree.map(drawn, model)


def _run(program: StepProgram, model: Qwen2, step: Step) -> tuple[HostOutputs, Spent]:
    arrays = batch_arrays(step, _token_ids(step))
    outputs: list[HostOutputs] = []

    def once() -> None:
        outputs[:] = [program.harvest(program.dispatch(model, *arrays))]

    once()
    return outputs[0], min((_spent(once) for _ in range(_REPEATS)), key=lambda spent: spent.wall)


def _token_ids(step: Step) -> list[Int32[np.ndarray, " tokens"]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, _VOCABULARY, place.length, np.int32) for place in step.placements]


def _commit(run: PlannedRun, form: ShardFormat, step: Step, outputs: HostOutputs) -> tuple[Spent, float]:
    """What a byte of activations costs, and what gzip divides it by."""
    samples = _stored(form, step, outputs)
    manifest = blank_manifest(run.config, form, frozenset())
    with tempfile.TemporaryDirectory() as folder:
        writer = ShardWriter(open_store(folder), manifest, form, lambda _: None)
        spent = _spent(lambda: writer.commit(samples, {}, complete=True))
        files = [file for shard in writer.manifest.shards for file in shard.files]
    size = sum(sample.tokens for sample in samples) * form.bytes_per_token
    written = sum(file.bytes for file in files if file.kind == "activations")
    return spent.times(1 / size), size / written


def _stored(form: ShardFormat, step: Step, outputs: HostOutputs) -> list[Sample]:
    ids, size = _token_ids(step), 0
    samples: list[Sample] = []
    for place in step.placements:
        if samples and size > _COMMITTED_BYTES:
            break
        span = slice(place.start, place.start + place.length)
        activations = {tap: rows[place.row][span] for tap, rows in outputs.items()}
        origin = {"test_index": 0, "prediction": 0, "augmentation": None}
        columns = token_columns(ids[place.sample], frozenset())
        samples.append(Sample(place.sample, "task", "preview", columns, origin, activations))
        size += place.length * form.bytes_per_token
    return samples


def _spent(call: Callable[[], object]) -> Spent:
    wall, cpu = time.monotonic(), time.process_time()
    call()
    return Spent(time.monotonic() - wall, time.process_time() - cpu)
