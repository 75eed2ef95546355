"""Layertap's forward pass: packed steps, one after another, with the activations of all layers
brought to the host.

`all layers` is what a run does without its writer; `last layer` brings one layer only, so that
nothing but the products can hold it up. Weights are drawn on the device: a checkpoint of 7B would
be 15 GB on a disk. Steps of one shape only, so that one program is compiled, and transformers is
given the same prompts.

With the prefix computed once, as runs do it, the same prompts fill fewer steps. Tokens are then
those of whole prompts; the operations are those that were left to do.
"""

import statistics
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.accelerator.config import PartConfig
from benchmarks.accelerator.part import Cases, Figures
from benchmarks.accelerator.sizes import arrays, full_steps, prompts, sizes_of, speed_shapes
from benchmarks.config import Dtype
from benchmarks.report import model_gflop
from benchmarks.workload import seconds_of
from layertap.model.attention import attend_flash
from layertap.model.config import DecoderConfig
from layertap.model.decoder import Decoder, ForwardPlan
from layertap.model.weights import abstract_model
from layertap.pipeline.packing import pack_window
from layertap.pipeline.step import Beginning, StepProgram, plan_for, resolve_taps

_BFLOAT16 = np.dtype(jnp.bfloat16)
Arrays = tuple[np.ndarray, np.ndarray]
"""Token ids and `seg_start` of a step."""

_BLOCK = 2048
BLOCKS = "all layers, in blocks of 2,048 tokens"
"""As it was before a card had run it: XLA copies the results of blocks (docs/LOG.md)."""

ONCE = "all layers, the prefix computed once"
"""As runs do it; computing the prefix itself is not counted, since a run does it once."""


def cases(config: PartConfig) -> Cases:
    """Both sizes, in bfloat16."""
    once = (ONCE,) if config.prefix == "shared" else ()
    return {
        f"{size} {way}": partial(_speed, config, shape, way)
        for size, shape in speed_shapes(config).items()
        for way in ("all layers", *once, "last layer", BLOCKS)
    }


def plan_of(config: PartConfig, compute: Dtype, capture_dtype: np.dtype = _BFLOAT16) -> ForwardPlan:
    """The run's own plan; with XLA's loop where the kernel failed."""
    plan = plan_for(config.platform, capture_dtype)
    return replace(plan, attend=attend_flash) if compute in config.loop else plan


def random_model(shape: DecoderConfig, layers: int) -> Decoder:
    """A model whose stream neither vanishes nor explodes, made where it is used; one small program
    for each shape.
    """
    leaves, tree = jax.tree.flatten(abstract_model(shape, layers, _BFLOAT16))
    seeds = jax.random.split(jax.random.key(0), len(leaves))
    drawn = [_drawn(seed, leaf.shape, leaf.dtype, layers) for seed, leaf in zip(seeds, leaves, strict=True)]
    made: Decoder = jax.tree.unflatten(tree, drawn)
    return made


@partial(jax.jit, static_argnums=(1, 2, 3))
def _drawn(seed: jax.Array, shape: tuple[int, ...], dtype: np.dtype, layers: int) -> jax.Array:
    if len(shape) == 1:
        return jnp.ones(shape, dtype)
    return jax.random.normal(seed, shape, dtype) * jnp.asarray((shape[0] * 2 * layers) ** -0.5, dtype)


def tokens_and_gflop(config: PartConfig, shape: DecoderConfig) -> tuple[int, float]:
    """Real tokens of all steps, and the operations that they need at least."""
    lengths = [len(ids) for _, own in full_steps(config) for ids in own]
    return sum(lengths), model_gflop(shape, shape.num_hidden_layers, lengths)


def _speed(config: PartConfig, shape: DecoderConfig, way: str) -> Figures:
    last, plan = shape.num_hidden_layers - 1, plan_of(config, "bfloat16")
    taps = resolve_taps((last,) if way == "last layer" else (), ("residual",), last + 1)
    plan = replace(plan, token_block=_BLOCK) if way == BLOCKS else plan
    program = StepProgram(abstract_model(shape, last + 1, _BFLOAT16), taps, plan)
    model = random_model(shape, last + 1)
    beginning = program.begin(model, prefix_of(config)) if way == ONCE else None
    given, tokens, gflop = (_behind_prefix if way == ONCE else _whole)(config, shape)
    compiling = seconds_of(lambda: run_steps(program, model, given[:1], beginning))
    runs = [seconds_of(lambda: run_steps(program, model, given, beginning)) for _ in range(sizes_of(config).repeats)]
    seconds = statistics.median(runs)
    computed = sum(ids.size for ids, _ in given)
    copied = computed * shape.hidden_size * 2 * len(taps) / 1e9
    return {
        "attention": "loop" if "bfloat16" in config.loop else "kernel",
        "steps": len(given),
        "tokens/s": tokens / seconds,
        "TFLOP/s": gflop / seconds / 1e3,
        "tokens of those computed": tokens / computed,
        "GB/s to the host": copied / seconds,
        "fastest of the runs": tokens / min(runs),
        "first step in s": compiling,
    }


def _whole(config: PartConfig, shape: DecoderConfig) -> tuple[list[Arrays], int, float]:
    """Steps of whole prompts, their tokens, and the operations that these need."""
    return [arrays(config, step) for step, _ in full_steps(config)], *tokens_and_gflop(config, shape)


def _behind_prefix(config: PartConfig, shape: DecoderConfig) -> tuple[list[Arrays], int, float]:
    """The same for steps of what is left of the prompts behind the prefix."""
    sizes, given, prefix = sizes_of(config), prompts(config), len(prefix_of(config))
    packed = pack_window([len(ids) - prefix for ids in given], (sizes.row_length,), sizes.rows)
    steps = [step for step in packed if step.rows == packed[0].rows][: sizes.steps]
    lengths = [len(given[place.sample]) for step in steps for place in step.placements]
    saved = model_gflop(shape, shape.num_hidden_layers, [prefix]) * len(lengths)
    gflop = model_gflop(shape, shape.num_hidden_layers, lengths) - saved
    return [arrays(config, step) for step in steps], sum(lengths), gflop


def prefix_of(config: PartConfig) -> np.ndarray:
    """What all prompts begin with; a quarter is left of the shortest."""
    given = prompts(config)
    shortest = min(map(len, given))
    same = np.logical_and.reduce([ids[:shortest] == given[0][:shortest] for ids in given])
    return given[0][: min(shortest - shortest // 4, int(np.argmin([*same, False])))]


def run_steps(
    program: StepProgram, model: Decoder, given: Sequence[Arrays], beginning: Beginning | None = None
) -> None:
    """One step computes while the host waits for the one before, as in a run."""
    before = None
    for ids, starts in given:
        outputs = program.dispatch(model, ids, starts, beginning)
        if before is not None:
            program.harvest(before)
        before = outputs
    if before is not None:
        program.harvest(before)
