"""The compiled step: packed rows in, activations out.

There is one program for each shape of step. It compiles ahead (`compile`, in threads, while weights
load) or when the shape first comes. If you compile ahead, call `close` at the end, or those threads
wait for ever. `dispatch` returns at once, with copies to the host already begun; `harvest` returns
numpy arrays when they are there. The device rounds activations to the narrower of compute and
storage dtype, so a bfloat16 run moves two bytes a value.

A prefix of all samples of a step may be computed before (`begin`): a small separate program gives
its activations, and its keys and values of each layer, which the step takes as inputs. Each device
computes the prefix for itself, so these are not sent between devices either.

Over several devices the step is one `shard_map`: each device computes its own rows, and this host
harvests the rows of its own devices. No activation is sent between devices.

On TPU the program itself writes activations to pinned host memory, each when its layer has run: all
layers of one 16,384-token row of 72B (21 GB) would not fit together into the memory of a v5e (16
GB). On GPU the device moves them there when the step has ended: a plain copy would go through a
small staging buffer at a tenth of the speed (jax#21438), and hold device memory until the host gets
to it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.stages import Compiled
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Int32

from layertap.core.taps import Site, Tap
from layertap.errors import DeviceError
from layertap.model.attention_gpu import attend_triton
from layertap.model.attention_tpu import attend_splash
from layertap.model.decoder import Decoder, ForwardPlan, Prefix
from layertap.model.mesh import ROWS, partition_model, placed
from layertap.pipeline import backend
from layertap.pipeline.packing import prefix_row
from layertap.pipeline.staying import DeviceStep

# 16,384 tokens of 72B at once would need 4 GB for the MLP's intermediate values alone; 2,048 keep
# a TPU busy. On a GPU XLA copies the results of each block, and a step of the default size in one
# block is 1.25 times as fast (0.5B on an H100, docs/LOG.md).
_TPU_BLOCK, _GPU_BLOCK = 2048, 16_384

Shape = tuple[int, int]
Outputs = tuple[Float[Array, "rows length _"], ...]  # each as wide as its site
# tap -> row of this host -> activations, [length, width of the site]. With `stays`, an object that
# says where they are: you slice and index it like an array.
HostOutputs = Mapping[Tap, Mapping[int, Any]]


@dataclass(frozen=True, eq=False)
class Beginning:
    """A prefix of samples, computed."""

    tokens: int
    computed_tokens: int
    """Including padding, on all devices of this host."""
    keys: Prefix
    """On the devices, one row for each."""
    activations: Mapping[Tap, Any]
    """[tokens, width of the site], like a row of `HostOutputs`."""


def run_step(
    model: Decoder,
    token_ids: Int[Array, "rows length"],
    seg_start: Int[Array, "rows length"],
    prefix: Prefix = (),
    *,
    taps: tuple[Tap, ...],
    plan: ForwardPlan,
) -> Outputs:
    """The activations at `taps`, [rows, length, width of the site] each in `plan.capture_dtype`."""
    forward = partial(Decoder.__call__, taps=taps, plan=plan)
    return cast(Outputs, _on_mesh(forward, model, token_ids, seg_start, prefix, plan=plan))


def run_beginning(
    model: Decoder,
    token_ids: Int[Array, "rows length"],
    seg_start: Int[Array, "rows length"],
    *,
    tokens: int,
    taps: tuple[Tap, ...],
    plan: ForwardPlan,
) -> tuple[Outputs, Prefix]:
    """The same for rows that begin with the prefix `tokens`, and the prefix's keys and values."""

    def begin(model: Decoder, token_ids: Array, seg_start: Array) -> tuple[Outputs, Prefix]:
        outputs, keys = model.begin(token_ids, seg_start, taps=taps, plan=plan)
        return outputs, jax.tree.map(lambda rows: rows[:, :tokens], keys)

    return cast(tuple[Outputs, Prefix], _on_mesh(begin, model, token_ids, seg_start, plan=plan))


def _on_mesh(function: Callable[..., Any], model: Decoder, *rows: Any, plan: ForwardPlan) -> Any:  # noqa: ANN401
    """Call `function(model, *rows)` on each device, for its rows."""
    if plan.mesh is None:
        return function(model, *rows)
    # check_vma=False: kernels do not say over which axes their results vary.
    in_specs = (partition_model(model), *[ROWS] * len(rows))
    return jax.shard_map(function, mesh=plan.mesh, in_specs=in_specs, out_specs=ROWS, check_vma=False)(model, *rows)


class StepProgram:
    """A model's shapes with the taps to read and the way to run it; weights may follow later.

    Shapes and rows are those of this host. If a mesh spans several hosts, they run each step
    together; its rows are those of all hosts side by side.
    """

    def __init__(self, abstract: Decoder, taps: tuple[Tap, ...], plan: ForwardPlan, *, stays: bool = False) -> None:
        """`stays`: activations stay on the one device, and `harvest` returns `DeviceTokens`."""
        self._abstract = placed(abstract, plan.mesh)
        self._taps = taps
        self._plan = replace(plan, outputs="device") if stays else plan
        self._stays = stays
        self._rows = NamedSharding(plan.mesh, ROWS) if plan.mesh else SingleDeviceSharding(jax.devices()[0])
        self._hosts = len({device.process_index for device in plan.mesh.devices.flat}) if plan.mesh else 1
        self._pinned = self._rows.with_memory_kind("pinned_host")
        self._outputs = self._pinned if self._plan.outputs == "offloaded" else self._rows
        self._compiled: dict[tuple[Shape, int], Future[Compiled]] = {}
        self._beginnings: dict[int, Any] = {}
        self._compilers: ThreadPoolExecutor | None = None

    def compile(self, shape: Shape, prefix: int = 0) -> Future[Compiled]:
        """Begin to compile for steps of `rows` x `length`, once. Call `close` afterwards.

        With `prefix`, samples follow so many tokens, whose program compiles too.
        """
        if prefix:
            self._compile_once((self.beginning_shape(prefix), -prefix))
        return self._compile_once((shape, prefix))

    def _compile_once(self, key: tuple[Shape, int]) -> Future[Compiled]:
        if key not in self._compiled:
            if self._compilers is None:
                self._compilers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="compile")
            self._compiled[key] = self._compilers.submit(self._maker(*key))
        return self._compiled[key]

    def _maker(self, shape: Shape, prefix: int) -> Callable[[], Compiled]:
        """Compiles a step after `prefix` tokens; if negative, the program that computes those."""
        if prefix < 0:
            return partial(self.lower_and_compile_beginning, -prefix)
        return partial(self.lower_and_compile, shape, prefix)

    def lower_and_compile(self, shape: Shape, prefix: int = 0) -> Compiled:
        """Compile for steps of `rows` x `length` in this thread; needs no weights and no device."""
        step = jax.jit(partial(run_step, taps=self._taps, plan=self._plan), out_shardings=self._outputs)
        numbers, keys = self._numbers(shape), self._keys_of(prefix) if prefix else ()
        return step.lower(self._abstract, numbers, numbers, keys).compile()

    def lower_and_compile_beginning(self, tokens: int) -> Compiled:
        """The same for the program that computes a prefix of so many tokens."""
        numbers = self._numbers(self.beginning_shape(tokens))
        return cast(Compiled, self._beginning(tokens).lower(self._abstract, numbers, numbers).compile())

    def beginning_shape(self, tokens: int) -> Shape:
        """Rows and length of that program: each device computes its own row."""
        devices = self._plan.mesh.size // self._hosts if self._plan.mesh else 1
        return devices, prefix_row(tokens)

    def _beginning(self, tokens: int) -> Any:  # noqa: ANN401 - a function that was jitted
        if tokens not in self._beginnings:
            run = partial(run_beginning, tokens=tokens, taps=self._taps, plan=self._plan)
            self._beginnings[tokens] = jax.jit(run, out_shardings=(self._outputs, self._rows))
        return self._beginnings[tokens]

    def _keys_of(self, prefix: int) -> Any:  # noqa: ANN401 - as `Prefix`, of shapes
        """Shapes of the keys and values of a prefix."""
        numbers = self._numbers(self.beginning_shape(prefix))
        _, keys = self._beginning(prefix).eval_shape(self._abstract, numbers, numbers)

        def place(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self._rows)  # type: ignore[no-untyped-call]

        return jax.tree.map(place, keys)

    def _numbers(self, shape: Shape) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self._global(shape), jnp.int32, sharding=self._rows)  # type: ignore[no-untyped-call]

    def dispatch(
        self,
        model: Decoder,
        token_ids: Int32[np.ndarray, "rows length"],
        seg_start: Int32[np.ndarray, "rows length"],
        beginning: Beginning | None = None,
    ) -> Outputs:
        """Start one step; compiles if the shape is new. Raises DeviceError if that fails.

        All its samples continue from `beginning`.
        """
        shape = cast(Shape, token_ids.shape)
        with _step_errors(shape):
            program = self._program(shape, beginning.tokens if beginning else 0)
            given = self._to_devices(token_ids), self._to_devices(seg_start), beginning.keys if beginning else ()
            return self._on_their_way(program(model, *given))

    def _on_their_way(self, outputs: Outputs) -> Outputs:
        """The outputs, moving to the host if they should go there."""
        if self._plan.outputs == "moved":
            outputs = jax.device_put(outputs, self._pinned)
        for output in () if self._stays else outputs:
            output.copy_to_host_async()
        return outputs

    def begin(self, model: Decoder, token_ids: Int32[np.ndarray, " tokens"]) -> Beginning:
        """Compute a prefix of samples for steps to use; raises DeviceError."""
        tokens = len(token_ids)
        shape = self.beginning_shape(tokens)
        numbers = np.zeros(shape, np.int32)
        numbers[:, :tokens] = token_ids
        seg_start = np.tile(np.r_[np.zeros(tokens), tokens : shape[1]].astype(np.int32), (shape[0], 1))
        with _step_errors(shape):
            program = self._program(shape, -tokens)
            outputs, keys = program(model, self._to_devices(numbers), self._to_devices(seg_start))
        rows = self.harvest(self._on_their_way(outputs))
        activations = {tap: found[0][:tokens].copy() for tap, found in rows.items()}
        return Beginning(tokens, shape[0] * shape[1], keys, activations)

    def close(self) -> None:
        """End the compiling threads after their current programs; Ctrl-C does not wait for them.

        Programs that were not begun are dropped. They compile when you ask for them again.
        """
        if self._compilers is not None:
            self._compilers.shutdown(wait=False, cancel_futures=True)
            self._compilers = None
            self._compiled = {key: made for key, made in self._compiled.items() if not made.cancelled()}

    def _program(self, shape: Shape, prefix: int) -> Compiled:
        key = shape, prefix
        if key not in self._compiled:
            made: Future[Compiled] = Future()
            made.set_result(self._maker(*key)())
            self._compiled[key] = made
        return self._compiled[key].result()

    def _global(self, shape: Shape) -> Shape:
        return self._hosts * shape[0], shape[1]

    def _to_devices(self, values: Int32[np.ndarray, "rows length"]) -> Int32[Array, "global_rows length"]:
        """Rows of this host on its own devices, in their order."""
        if self._hosts == 1:
            return jax.device_put(values, self._rows)
        shape = self._global(cast(Shape, values.shape))
        firsts = sorted(map(_first_row, self._rows.addressable_devices_indices_map(shape).values()))
        parts = dict(zip(firsts, np.split(values, len(firsts)), strict=True))
        return jax.make_array_from_callback(shape, self._rows, lambda index: parts[_first_row(index)])

    def is_ready(self, outputs: Outputs) -> bool:
        """Whether the step has ended."""
        return all(output.is_ready() for output in outputs)  # type: ignore[attr-defined]  # missing in jax.Array

    def harvest(self, outputs: Outputs, beginning: Beginning | None = None) -> HostOutputs:
        """The step's activations on this host as numpy arrays (bfloat16 as `ml_dtypes.bfloat16`),
        without a copy if device and host share memory; or objects that say where they stay.

        Raises DeviceError if the step failed.
        """
        with _step_errors(cast(Shape, outputs[0].shape[:2])):
            if self._stays:
                before = None if beginning is None else beginning.activations
                return DeviceStep.of(dict(zip(self._taps, outputs, strict=True)), before).rows()
            return {tap: _rows_here(output) for tap, output in zip(self._taps, outputs, strict=True)}


def _first_row(index: tuple[slice, ...] | None) -> int:
    assert index is not None  # only a scalar has none
    return index[0].start or 0


def _rows_here(output: Array) -> dict[int, Float[np.ndarray, "length _"]]:
    # Not by `addressable_shards`: on one device these hold the array that holds them, a cycle that
    # keeps a step's memory until the garbage collector runs, many steps later.
    places = output.sharding.addressable_devices_indices_map(output.shape).values()
    parts = {_first_row(place): number for number, place in enumerate(places)}
    return dict(
        enumerate(row for _, number in sorted(parts.items()) for row in np.asarray(output.addressable_data(number)))
    )


@contextmanager
def device_errors(on: str, remedy: str) -> Iterator[None]:
    """Raise DeviceError for JAX's errors in the block; it names what the device worked `on`."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        raise DeviceError(f"the device failed on {on}: {error}. Where memory ran out, {remedy}") from error


def _step_errors(shape: Shape) -> AbstractContextManager[None]:
    return device_errors(f"a step of {shape[0]} x {shape[1]} tokens", "lower --batch_size or --row_length")


def plan_for(platform: str, capture_dtype: np.dtype, mesh: Mesh | None = None) -> ForwardPlan:
    """The way to run the model on devices of a platform ("cpu", "gpu" or "tpu")."""
    if platform == "cpu":
        return ForwardPlan(capture_dtype, widen=not backend.multiplies_bfloat16(), mesh=mesh)
    if platform == "tpu":
        return ForwardPlan(capture_dtype, attend_splash, _TPU_BLOCK, None, outputs="offloaded", mesh=mesh)
    return ForwardPlan(capture_dtype, attend_triton, _GPU_BLOCK, None, outputs="moved", mesh=mesh)


def transfer_dtype(compute: DTypeLike, storage: DTypeLike) -> np.dtype:
    """bfloat16 if the products or the files are, else float32."""
    return np.dtype(jnp.bfloat16 if jnp.bfloat16 in (np.dtype(compute), np.dtype(storage)) else jnp.float32)


def resolve_taps(layers: Sequence[int], sites: Sequence[Site], num_layers: int) -> tuple[Tap, ...]:
    """Every (layer, site) asked for, sorted by layer; no layers means all."""
    return tuple(Tap(layer, site) for layer in layers or range(num_layers) for site in sites)
