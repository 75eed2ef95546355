"""Layertap's forward pass: packed steps, one after another, with the activations of all layers
brought to the host.

`all layers` is what a run does without its writer; `last layer` brings one layer only, so that
nothing but the products can hold it up. Weights are drawn on the device: a checkpoint of 7B would
be 15 GB on a disk. Steps of one shape only, so that one program is compiled, and transformers is
given the same prompts.
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
from benchmarks.accelerator.sizes import arrays, full_steps, sizes_of, speed_shapes
from benchmarks.config import Dtype
from benchmarks.report import model_gflop
from benchmarks.workload import seconds_of
from layertap.model.attention import attend_flash
from layertap.model.config import DecoderConfig
from layertap.model.decoder import Decoder, ForwardPlan
from layertap.model.weights import abstract_model
from layertap.pipeline.step import StepProgram, plan_for, resolve_taps

_BFLOAT16 = np.dtype(jnp.bfloat16)

ALL_TOKENS = "all layers, all tokens at once"
"""Without the plan's blocks of tokens: XLA copies their results from loop to loop (docs/LOG.md)."""


def cases(config: PartConfig) -> Cases:
    """Both sizes, in bfloat16."""
    return {
        f"{size} {way}": partial(_speed, config, shape, way)
        for size, shape in speed_shapes(config).items()
        for way in ("all layers", "last layer", ALL_TOKENS)
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
    plan = replace(plan, token_block=None) if way == ALL_TOKENS else plan
    program = StepProgram(abstract_model(shape, last + 1, _BFLOAT16), taps, plan)
    given = [arrays(config, step) for step, _ in full_steps(config)]
    model = random_model(shape, last + 1)
    compiling = seconds_of(lambda: run_steps(program, model, given[:1]))
    runs = [seconds_of(lambda: run_steps(program, model, given)) for _ in range(sizes_of(config).repeats)]
    seconds = statistics.median(runs)
    tokens, gflop = tokens_and_gflop(config, shape)
    computed = sum(ids.size for ids, _ in given)
    copied = computed * shape.hidden_size * 2 * len(taps) / 1e9
    return {
        "attention": "loop" if "bfloat16" in config.loop else "kernel",
        "steps": len(given),
        "tokens/s": tokens / seconds,
        "TFLOP/s": gflop / seconds / 1e3,
        "real tokens": tokens / computed,
        "GB/s to the host": copied / seconds,
        "fastest of the runs": tokens / min(runs),
        "first step in s": compiling,
    }


def run_steps(program: StepProgram, model: Decoder, given: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """One step computes while the host waits for the one before, as in a run."""
    before = None
    for ids, starts in given:
        outputs = program.dispatch(model, ids, starts)
        if before is not None:
            program.harvest(before)
        before = outputs
    if before is not None:
        program.harvest(before)
