"""Weights from safetensors straight to the device: no torch, no second copy in host memory.

layout.py says which Hugging Face tensors make up each of our parameters; adapters.py changes them.
The model is built abstractly (`nnx.eval_shape`), every needed tensor is checked against it, and all
mismatches are reported at once. Only then is anything read. Each device asks for its own slice
(`jax.make_array_from_callback`), so a host of a slice reads only the bytes of its devices.
"""

import threading
from collections.abc import Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, Sharding
from jax.typing import DTypeLike

from layertap.errors import ModelError
from layertap.model.adapters import merged
from layertap.model.checkpoint import Checkpoint
from layertap.model.config import DecoderConfig
from layertap.model.decoder import Decoder
from layertap.model.layout import is_transposed, source_shapes, sources_of, tensor_names
from layertap.model.mesh import sharding_of
from layertap.model.tensors import READABLE, Readable, Tensor

_READERS = 4  # parameters that are read at once
_TURNED_ROWS = 64  # of a matrix at a time: they fit into the cache
_SHOWN = 20  # mismatches that one message names


def load(
    checkpoint: Checkpoint,
    num_layers: int,
    dtype: DTypeLike,
    mesh: Mesh | None = None,
    abandoned: threading.Event | None = None,
) -> Decoder:
    """Load the embedding and the first layers: matrices in `dtype`, norms and biases in float32.

    model/mesh.py says where on `mesh` each parameter is; without a mesh, it is on the first device.
    Raises one ModelError for all tensors that are missing, quantised or of another shape than
    `config.json` says, and names the first twenty.

    Any thread may set `abandoned`: no further parameter is read then, and CancelledError is raised.
    """
    graph, state = nnx.split(abstract_model(checkpoint.config, num_layers, dtype))
    parameters = {".".join(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}
    sources = sources_of(checkpoint.config, num_layers)
    with (
        checkpoint.open_tensors(tensor_names(checkpoint.config, num_layers)) as tensors,
        merged(tensors, checkpoint.adapters) as changed,
    ):
        shapes = {name: variable.get_value().shape for name, variable in parameters.items()}
        _refuse_mismatches(checkpoint, shapes, sources, tensors)

        def read(name: str) -> jax.Array:
            if abandoned is not None and abandoned.is_set():
                raise CancelledError
            parts = [changed[source] for source in sources[name]]
            sharding = sharding_of(mesh, name, shapes[name])
            added = 1 if checkpoint.config.offset_norms and name.endswith(".scale") else 0
            return _read_parameter(
                parameters[name].get_value(), parts, sharding, transposed=is_transposed(name), added=added
            )

        with ThreadPoolExecutor(_READERS, thread_name_prefix="read-weights") as pool:
            arrays = list(pool.map(read, parameters))
    for variable, array in zip(parameters.values(), arrays, strict=True):
        variable.set_value(array)
    return nnx.merge(graph, state)


def abstract_model(config: DecoderConfig, num_layers: int, dtype: DTypeLike) -> Decoder:
    """The model with shapes and dtypes for parameters: enough to compile, costs no memory."""
    return nnx.eval_shape(lambda: Decoder(config, num_layers, dtype))


def first_layers(model: Decoder, config: DecoderConfig, num_layers: int) -> Decoder:
    """The same model with only its first layers; costs no memory."""
    if len(model.layers) == num_layers:
        return model
    graph, state = nnx.split(abstract_model(config, num_layers, model.embedding[...].dtype))
    held = nnx.to_flat_state(nnx.state(model))
    kept = dict(held)
    return nnx.merge(graph, nnx.from_flat_state([(path, kept[path]) for path, _ in nnx.to_flat_state(state)]))


def _refuse_mismatches(
    checkpoint: Checkpoint,
    parameters: Mapping[str, tuple[int, ...]],
    sources: Mapping[str, tuple[str, ...]],
    tensors: Mapping[str, Tensor],
) -> None:
    wrong = []
    for parameter, whole in parameters.items():
        for name, shape in zip(sources[parameter], source_shapes(parameter, whole, checkpoint.config), strict=True):
            if name not in tensors:
                wrong.append(f"{name} is missing")
            elif 0 in tensors[name].shape:
                wrong.append(f"{name} is empty: saved under DeepSpeed ZeRO-3, whose zero_to_fp32.py gathers weights")
            elif tensors[name].shape != shape:
                wrong.append(f"{name} has shape {tensors[name].shape}, config.json implies {shape}")
            elif tensors[name].dtype not in READABLE:
                wrong.append(f"{name} is stored as {tensors[name].dtype}, not as one of {', '.join(READABLE)}")
    if wrong:
        shown = wrong[:_SHOWN] + [f"and {len(wrong) - _SHOWN} more"] * (len(wrong) > _SHOWN)
        raise ModelError(f"{checkpoint.folder}: weights do not fit config.json:\n  " + "\n  ".join(shown))


def _read_parameter(
    abstract: jax.ShapeDtypeStruct, parts: list[Readable], sharding: Sharding, *, transposed: bool, added: int
) -> jax.Array:
    """The values plus `added`, in the parameter's dtype."""

    def read_slice(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None  # only a scalar has no index
        if not transposed:
            values = _read_rows(parts, index[0], index[1:]).astype(abstract.dtype)
            return values + values.dtype.type(added) if added else values
        inputs, outputs = index
        return transpose(_read_rows(parts, outputs, (inputs,)).astype(abstract.dtype, copy=False))

    return jax.make_array_from_callback(abstract.shape, sharding, read_slice)


def transpose(values: np.ndarray) -> np.ndarray:
    """A matrix's transpose, in new memory.

    numpy moves bfloat16 one value at a time, at 70 MB/s. As integers, and by as many rows as fit
    into the cache, it is eight times as fast.
    """
    bits = values.view(f"u{values.dtype.itemsize}")
    turned = np.empty(bits.shape[::-1], bits.dtype)
    for begin in range(0, len(bits), _TURNED_ROWS):
        rows = slice(begin, begin + _TURNED_ROWS)
        turned[:, rows] = bits[rows].T
    return turned.view(values.dtype)


def _read_rows(parts: list[Readable], rows: slice, rest: tuple[slice, ...]) -> np.ndarray:
    """Rows `rows` of the parts stacked on their first dimension, and `rest` of their other
    dimensions.
    """
    first, last, _ = rows.indices(sum(part.shape[0] for part in parts))
    pieces, offset = [], 0
    for part in parts:
        begin, end = max(first - offset, 0), min(last - offset, part.shape[0])
        if begin < end:
            pieces.append(part.read(slice(begin, end), *rest))
        offset += part.shape[0]
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
