"""One model over many devices: data parallel and FSDP on one mesh, and no tensor parallelism.

A step's rows are divided over both axes, `data` and `fsdp`, so each device computes whole rows
and ends with whole activations: no captured value is sent between devices. Weights are split along
`fsdp` only (Zhao et al. 2023, arXiv 2304.11277): a device keeps 1/fsdp of each kernel, and gathers
one layer's kernels when that layer runs. Tensor parallelism would have to divide 2, 4 or 8
key-value heads, and would leave activations split by hidden unit.

What it costs: every step moves the model's weights once over the interconnect to every device, so a
step should have several thousand tokens a device (a few rows). The token embedding is split by
hidden unit instead of being gathered (2.5 GB at 72B): each device looks up its own units for the
rows of its fsdp group, and one all-to-all gives each device the whole vectors of its own rows.

All of it runs inside `jax.shard_map`: the code here, and not a partitioner, decides what is
gathered and when.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, Sharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from layertap.errors import UsageError

AXES = ("data", "fsdp")
ROWS = P(AXES)  # type: ignore[no-untyped-call]  # how a step's rows are divided

# The rest is for one gathered layer, activations and outputs.
_WEIGHTS_SHARE = 0.25  # of a device's memory

Module = TypeVar("Module", bound=nnx.Module)


@dataclass(frozen=True)
class MeshShape:
    """`data` groups of devices; each group has a whole model, split over its `fsdp` devices."""

    data: int = 1
    fsdp: int = 1

    @property
    def devices(self) -> int:
        """How many devices the mesh has."""
        return self.data * self.fsdp

    def __str__(self) -> str:
        return f"data={self.data},fsdp={self.fsdp}"


def parse_mesh(text: str) -> MeshShape:
    """`data=8,fsdp=8` (either may be left out); raises UsageError."""
    sizes: dict[str, int] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(data|fsdp)\s*=\s*([1-9]\d*)\s*", part)
        if match is None or match[1] in sizes:
            raise UsageError(f"--mesh {text}: give auto, or sizes such as data=8,fsdp=8")
        sizes[match[1]] = int(match[2])
    return MeshShape(**sizes)


def auto_shape(devices: int, weight_bytes: int, device_bytes: int | None) -> MeshShape:
    """The fewest splits with which weights fill a quarter of `device_bytes`; None: no splits."""
    if device_bytes is None:
        return MeshShape(data=devices)
    divisors = [size for size in range(1, devices + 1) if devices % size == 0]
    fitting = [size for size in divisors if weight_bytes <= _WEIGHTS_SHARE * device_bytes * size]
    fsdp = min(fitting, default=devices)
    return MeshShape(devices // fsdp, fsdp)


def make_mesh(shape: MeshShape, devices: Sequence[jax.Device]) -> Mesh:
    """The mesh over `devices`, fsdp groups on neighbours; raises UsageError for other sizes."""
    if shape.devices != len(devices):
        raise UsageError(f"--mesh {shape} is {shape.devices} devices, but there are {len(devices)}")
    sizes = (shape.data, shape.fsdp)
    if devices[0].platform == "tpu":
        grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
        return Mesh(grid, AXES)
    return Mesh(np.array(devices).reshape(sizes), AXES)


def partition(name: str, shape: tuple[int, ...]) -> P:
    """How a parameter is split: kernels by input, the embedding by hidden unit, nothing else."""
    if name.endswith("embedding"):
        return P(None, "fsdp")  # type: ignore[no-untyped-call]
    return P("fsdp") if len(shape) == 2 else P()  # type: ignore[no-untyped-call]


def sharding_of(mesh: Mesh | None, name: str, shape: tuple[int, ...]) -> Sharding:
    """Where a parameter of this name and shape is kept; without a mesh, on the first device.

    Raises UsageError if it cannot be split so.
    """
    if mesh is None:
        return SingleDeviceSharding(jax.devices()[0])
    spec = partition(name, shape)
    for size, axis in zip(shape, spec, strict=False):
        if axis is not None and size % mesh.shape[axis]:
            raise UsageError(f"--mesh {axis}={mesh.shape[axis]}: does not divide {name} of shape {shape}")
    return NamedSharding(mesh, spec)


def partition_model(model: Module) -> Module:
    """The same tree with a `PartitionSpec` for each parameter, for `jax.shard_map`."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: partition(_name(path), leaf.shape), model)


def placed(model: Module, mesh: Mesh | None) -> Module:
    """The same tree with shape, dtype and sharding of each parameter: enough to compile."""

    def place(path: tuple[object, ...], leaf: Array | jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        sharding = sharding_of(mesh, _name(path), leaf.shape)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)  # type: ignore[no-untyped-call]

    return jax.tree_util.tree_map_with_path(place, model)


def whole(layer: Module, mesh: Mesh | None, after: Array) -> Module:
    """Inside `shard_map`: the layer with whole kernels, gathered not before `after` is known.

    `after` is the residual stream in front of the layer before: gathering overlaps with one layer's
    products, and at most two layers are whole at a time. Without this, the TPU compiler gathers
    eight, 14 GB of a 72B model.
    """
    if mesh is None or mesh.shape["fsdp"] == 1:
        return layer
    layer, _ = lax.optimization_barrier((layer, after))  # type: ignore[no-untyped-call]
    return jax.tree.map(lambda leaf: lax.all_gather(leaf, "fsdp", tiled=True) if leaf.ndim == 2 else leaf, layer)


def look_up(table: Float[Array, "V part"], token_ids: Int[Array, "B T"], mesh: Mesh | None) -> Float[Array, "B T H"]:
    """Inside `shard_map`: the embeddings of this device's rows. The table is split by unit."""
    if mesh is None or mesh.shape["fsdp"] == 1:
        return table[token_ids]
    everyones = lax.all_gather(token_ids, "fsdp", tiled=True)  # [B * fsdp, T], integers
    found = table[everyones]  # [B * fsdp, T, H / fsdp]
    return cast(Array, lax.all_to_all(found, "fsdp", split_axis=0, concat_axis=2, tiled=True))  # type: ignore[no-untyped-call]


def weight_bytes(model: nnx.Module) -> int:
    """Bytes of all parameters, each counted once."""
    return sum(math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(model))


def _name(path: tuple[object, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
