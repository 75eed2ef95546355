"""Weights from safetensors straight to the device: no torch, no second copy in host memory.

One table says which Hugging Face tensors make each of our parameters. The model is built abstractly
(`nnx.eval_shape`), every needed tensor is checked against it, all mismatches are reported at once,
and only then is anything read. Each device asks for its own slice (`jax.make_array_from_callback`),
so a host of a slice reads only the bytes that its devices hold.

Kernels are kept [inputs, outputs], the transpose of what torch stores, and query, key and value
(gate and up) stand side by side in one kernel.
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
from layertap.model.checkpoint import Checkpoint, Tensor
from layertap.model.config import DecoderConfig
from layertap.model.decoder import Decoder
from layertap.model.mesh import sharding_of

_READABLE = ("BF16", "F16", "F32")
_READERS = 4  # parameters that are read at once
_SHOWN = 20  # mismatches in one message


def tensor_names(config: DecoderConfig, num_layers: int) -> list[str]:
    """The Hugging Face names of every tensor that the first `num_layers` layers need."""
    return [name for sources in _table(config, num_layers).values() for name in sources]


def load(
    checkpoint: Checkpoint,
    num_layers: int,
    dtype: DTypeLike,
    mesh: Mesh | None = None,
    abandoned: threading.Event | None = None,
) -> Decoder:
    """Load the embedding and the first layers: matrices in `dtype`, norms and biases in float32.

    Each parameter lies on `mesh` as model/mesh.py says; without a mesh, on the first device. Raises
    one ModelError for all tensors that are missing, quantised or of another shape than
    `config.json` says, naming the first twenty.

    Any thread may set `abandoned`: no further parameter is read then, and CancelledError is raised.
    """
    graph, state = nnx.split(abstract_model(checkpoint.config, num_layers, dtype))
    parameters = {".".join(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}
    sources = _table(checkpoint.config, num_layers)
    with checkpoint.open_tensors(tensor_names(checkpoint.config, num_layers)) as tensors:
        shapes = {name: variable.get_value().shape for name, variable in parameters.items()}
        _refuse_mismatches(checkpoint, shapes, sources, tensors)

        def read(name: str) -> jax.Array:
            if abandoned is not None and abandoned.is_set():
                raise CancelledError
            parts = [tensors[source] for source in sources[name]]
            sharding = sharding_of(mesh, name, shapes[name])
            added = 1 if checkpoint.config.offset_norms and name.endswith(".scale") else 0
            return _read_parameter(
                parameters[name].get_value(), parts, sharding, transposed=_is_transposed(name), added=added
            )

        with ThreadPoolExecutor(_READERS, thread_name_prefix="read-weights") as pool:
            arrays = list(pool.map(read, parameters))
    for variable, array in zip(parameters.values(), arrays, strict=True):
        variable.set_value(array)
    return nnx.merge(graph, state)


def abstract_model(config: DecoderConfig, num_layers: int, dtype: DTypeLike) -> Decoder:
    """The model with shapes and dtypes for parameters: enough to compile, costs no memory."""
    return nnx.eval_shape(lambda: Decoder(config, num_layers, dtype))


def _table(config: DecoderConfig, num_layers: int) -> dict[str, tuple[str, ...]]:
    table: dict[str, tuple[str, ...]] = {"embedding": ("model.embed_tokens.weight",)}
    of_layer = _layer_table(config)
    for layer in range(num_layers):
        for ours, theirs in of_layer.items():
            table[f"layers.{layer}.{ours}"] = tuple(f"model.layers.{layer}.{name}" for name in theirs)
    return table


def _layer_table(config: DecoderConfig) -> dict[str, tuple[str, ...]]:
    """Parameter -> its tensors, side by side; matrices are transposed, except the embedding."""
    qkv = ("self_attn.qkv_proj",) if config.fused else ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    gate_up = ("mlp.gate_up_proj",) if config.fused else ("mlp.gate_proj", "mlp.up_proj")
    before_mlp = "pre_feedforward_layernorm" if config.norms_after else "post_attention_layernorm"
    projections = [
        ("attention.qkv", qkv, config.qkv_bias),
        ("attention.out", ("self_attn.o_proj",), config.output_bias),
        ("mlp.gate_up", gate_up, config.mlp_bias),
        ("mlp.down", ("mlp.down_proj",), config.mlp_bias),
    ]
    norms = [
        ("attention_norm", "input_layernorm", True),
        ("after_attention", "post_attention_layernorm", config.norms_after),
        ("mlp_norm", before_mlp, True),
        ("after_mlp", "post_feedforward_layernorm", config.norms_after),
        ("attention.query_norm", "self_attn.q_norm", config.head_norms),
        ("attention.key_norm", "self_attn.k_norm", config.head_norms),
    ]
    return (
        {f"{ours}.kernel": tuple(f"{name}.weight" for name in theirs) for ours, theirs, _ in projections}
        | {f"{ours}.bias": tuple(f"{name}.bias" for name in theirs) for ours, theirs, has in projections if has}
        | {f"{ours}.scale": (f"{theirs}.weight",) for ours, theirs, has in norms if has}
    )


def _is_transposed(name: str) -> bool:
    return name.endswith(".kernel")


def _refuse_mismatches(
    checkpoint: Checkpoint,
    parameters: Mapping[str, tuple[int, ...]],
    sources: Mapping[str, tuple[str, ...]],
    tensors: Mapping[str, Tensor],
) -> None:
    wrong = []
    for parameter, whole in parameters.items():
        for name, shape in zip(sources[parameter], _source_shapes(parameter, whole, checkpoint.config), strict=True):
            if name not in tensors:
                wrong.append(f"{name} is missing")
            elif 0 in tensors[name].shape:
                wrong.append(f"{name} is empty: saved under DeepSpeed ZeRO-3, whose zero_to_fp32.py gathers weights")
            elif tensors[name].shape != shape:
                wrong.append(f"{name} has shape {tensors[name].shape}, config.json implies {shape}")
            elif tensors[name].dtype not in _READABLE:
                wrong.append(f"{name} is stored as {tensors[name].dtype}, not as one of {', '.join(_READABLE)}")
    if wrong:
        shown = wrong[:_SHOWN] + [f"and {len(wrong) - _SHOWN} more"] * (len(wrong) > _SHOWN)
        raise ModelError(f"{checkpoint.folder}: weights do not fit config.json:\n  " + "\n  ".join(shown))


def _source_shapes(parameter: str, shape: tuple[int, ...], config: DecoderConfig) -> list[tuple[int, ...]]:
    """The shapes of the tensors that stand side by side in a parameter."""
    outputs, *inputs = shape[::-1] if _is_transposed(parameter) else shape
    heads, kv_heads = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
    parts = [outputs]
    if config.fused:
        return [shape[::-1] if _is_transposed(parameter) else shape]
    if ".qkv." in parameter:
        parts = [heads, kv_heads, kv_heads]
    elif ".gate_up." in parameter:
        parts = [config.intermediate_size] * 2
    return [(part, *inputs) for part in parts]


def _read_parameter(
    abstract: jax.ShapeDtypeStruct, parts: list[Tensor], sharding: Sharding, *, transposed: bool, added: int
) -> jax.Array:
    """`added` to each value, in the parameter's dtype."""

    def read_slice(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None  # only a scalar has no index
        if not transposed:
            values = _read_rows(parts, index[0], index[1:]).astype(abstract.dtype)
            return values + values.dtype.type(added) if added else values
        inputs, outputs = index
        return np.ascontiguousarray(_read_rows(parts, outputs, (inputs,)).T.astype(abstract.dtype))

    return jax.make_array_from_callback(abstract.shape, sharding, read_slice)


def _read_rows(parts: list[Tensor], rows: slice, rest: tuple[slice, ...]) -> np.ndarray:
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
