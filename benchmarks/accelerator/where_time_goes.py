"""Where the time of one step goes, in two ways.

Pieces: each timed by itself, which works anywhere: the whole step on the device, its attention, its
products as bare products, and the copy of all layers to the host. What is left of the step is
norms, rotations, SiLU and the loop.

Kernels: what the device says it ran (`jax.profiler`), by kind and by name. Kinds are told by names,
so `other` may hold what a newer XLA calls differently; the names are there to see it.
"""

import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.profiler import ProfileData

from benchmarks.accelerator.config import PartConfig
from benchmarks.accelerator.layertap_speed import plan_of, random_model
from benchmarks.accelerator.part import Cases, Figures
from benchmarks.accelerator.sizes import arrays, full_steps, speed_shapes
from benchmarks.accelerator.timing import milliseconds
from layertap.model.config import DecoderConfig
from layertap.model.weights import abstract_model
from layertap.pipeline.step import StepProgram, resolve_taps

_BFLOAT16 = np.dtype(jnp.bfloat16)
_SHOWN = 12
_OUTER = ("while", "call", "conditional", "jit", "ThreadpoolListener")
_KINDS = {
    "attention": ("attend_packed",),
    "copies": ("memcpy", "copy"),
    "products": ("gemm", "dot", "nvjet", "cutlass", "cublas", "xmma", "matmul", "ynn", "sm90_", "sm80_"),
}


def cases(config: PartConfig) -> Cases:
    """Both ways, both sizes."""
    found = {}
    for size, shape in speed_shapes(config).items():
        found[f"{size} pieces"] = partial(_pieces, config, shape)
        found[f"{size} kernels"] = partial(_kernels, config, shape)
    return found


def _program(config: PartConfig, shape: DecoderConfig) -> tuple[StepProgram, Any, tuple[np.ndarray, np.ndarray]]:
    count = shape.num_hidden_layers
    taps = resolve_taps((), ("residual",), count)
    program = StepProgram(abstract_model(shape, count, _BFLOAT16), taps, plan_of(config, "bfloat16"))
    return program, random_model(shape, count), arrays(config, full_steps(config)[0][0])


def _pieces(config: PartConfig, shape: DecoderConfig) -> Figures:
    program, model, (ids, starts) = _program(config, shape)
    compiled = program.lower_and_compile((len(ids), len(ids[0])))
    given = [jax.device_put(array) for array in (ids, starts)]
    step = milliseconds(lambda: compiled(model, *given, ()))
    outputs = compiled(model, *given, ())
    copying = milliseconds(lambda: _to_host(outputs))
    attention = shape.num_hidden_layers * _attention(config, shape, jnp.asarray(starts))
    products = shape.num_hidden_layers * _products(shape, ids.size)
    return {
        "step ms": step,
        "attention ms": attention,
        "products ms": products,
        "the rest ms": step - attention - products,
        "copy of all layers ms": copying,
        "copy GB/s": sum(output.nbytes for output in outputs) / copying / 1e6,
    }


def _to_host(outputs: tuple[jax.Array, ...]) -> None:
    """By pinned memory, as a run does (pipeline/step.py)."""
    moved = [jax.device_put(output, output.sharding.with_memory_kind("pinned_host")) for output in outputs]
    for output in moved:
        np.asarray(output)


def _attention(config: PartConfig, shape: DecoderConfig, starts: jax.Array) -> float:
    kv_heads, size = shape.num_key_value_heads, shape.head_dim
    group = shape.num_attention_heads // kv_heads
    seeds = jax.random.split(jax.random.key(0), 3)
    queries = jax.random.normal(seeds[0], (*starts.shape, kv_heads, group, size), jnp.bfloat16)
    keys, values = (jax.random.normal(seed, (*starts.shape, kv_heads, size), jnp.bfloat16) for seed in seeds[1:])
    attend = jax.jit(plan_of(config, "bfloat16").attend)
    return milliseconds(lambda: attend(queries, keys, values, starts))


def _products(shape: DecoderConfig, tokens: int) -> float:
    """The four products of a layer, of all tokens at once."""
    heads = shape.num_attention_heads * shape.head_dim
    kernels = (
        (shape.hidden_size, heads + 2 * shape.num_key_value_heads * shape.head_dim),
        (heads, shape.hidden_size),
        (shape.hidden_size, 2 * shape.intermediate_size),
        (shape.intermediate_size, shape.hidden_size),
    )
    return sum(_product(tokens, *kernel) for kernel in kernels)


def _product(tokens: int, inputs: int, outputs: int) -> float:
    left = jax.random.normal(jax.random.key(0), (tokens, inputs), jnp.bfloat16)
    right = jax.random.normal(jax.random.key(1), (inputs, outputs), jnp.bfloat16)
    product = jax.jit(lambda left, right: jnp.matmul(left, right, preferred_element_type=jnp.float32))
    return milliseconds(lambda: product(left, right))


def _kernels(config: PartConfig, shape: DecoderConfig) -> Figures:
    program, model, given = _program(config, shape)
    program.harvest(program.dispatch(model, *given))
    with tempfile.TemporaryDirectory(dir=config.work) as folder:
        with jax.profiler.trace(folder):
            program.harvest(program.dispatch(model, *given))
        found = next(Path(folder).rglob("*.xplane.pb"))
        times = Counter[str]()
        for name, nanoseconds in device_events(ProfileData.from_file(str(found))):
            times[name] += int(nanoseconds)
    kinds = Counter[str]()
    for name, nanoseconds in times.items():
        kinds[kind_of(name)] += nanoseconds
    shown = [f"{name} {nanoseconds / 1e6:.3g} ms" for name, nanoseconds in times.most_common(_SHOWN)]
    return {f"{kind} ms": kinds[kind] / 1e6 for kind in (*_KINDS, "other")} | {"longest": shown}


def device_events(profile: ProfileData) -> Iterator[tuple[str, float]]:
    """What ran on the device, by name: on a card all of its streams, on a CPU the operations of
    XLA's threads.
    """
    planes = [plane for plane in profile.planes if plane.name.startswith("/device:")]
    for plane in planes or [plane for plane in profile.planes if plane.name == "/host:CPU"]:
        for line in plane.lines:
            if planes or line.name.startswith("tf_XLA"):
                yield from (
                    (event.name, event.duration_ns) for event in line.events if not event.name.startswith(_OUTER)
                )


def kind_of(name: str) -> str:
    """The kind of a kernel, by its name."""
    lower = name.lower()
    return next((kind for kind, parts in _KINDS.items() if any(part in lower for part in parts)), "other")
