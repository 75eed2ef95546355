"""Weights from safetensors straight to the device: no torch, no second copy of the model in host memory.

One table says which Hugging Face tensors make each of our parameters. The model is built abstractly
(`nnx.eval_shape`), every needed tensor is checked against it, all mismatches are reported at once, and only then is
anything read. Each device asks for its own slice (`jax.make_array_from_callback`), so a host of a slice reads only
the bytes that its devices hold.

Kernels are kept [inputs, outputs], the transpose of what torch stores, and query, key and value (gate and up) stand
side by side in one kernel.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Sharding, SingleDeviceSharding
from jax.typing import DTypeLike
from safetensors import SafetensorError, safe_open

from layertap.errors import ModelError
from layertap.model.checkpoint import Checkpoint
from layertap.model.config import Qwen2Config
from layertap.model.qwen2 import Qwen2

# parameter -> the tensors that stand side by side in it; matrices are transposed, except the embedding.
_LAYER_TABLE = {
    "attention_norm.scale": ("input_layernorm.weight",),
    "attention.qkv.kernel": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "attention.qkv.bias": ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"),
    "attention.out.kernel": ("self_attn.o_proj.weight",),
    "mlp_norm.scale": ("post_attention_layernorm.weight",),
    "mlp.gate_up.kernel": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "mlp.down.kernel": ("mlp.down_proj.weight",),
}

ShardingOf = Callable[[str, tuple[int, ...]], Sharding]


def tensor_names(num_layers: int) -> list[str]:
    """The Hugging Face names of every tensor that the first `num_layers` layers need."""
    return [name for sources in _table(num_layers).values() for name in sources]


def load(checkpoint: Checkpoint, num_layers: int, dtype: DTypeLike, sharding_of: ShardingOf | None = None) -> Qwen2:
    """Load the embedding and the first `num_layers` layers; kernels and embedding in `dtype`, norms and biases in
    float32.

    `sharding_of(parameter, shape)` places each parameter (default: the first device). Raises ModelError listing every
    tensor that is missing or has another shape than `config.json` says.
    """
    place = sharding_of or (lambda _name, _shape: SingleDeviceSharding(jax.devices()[0]))
    graph, state = nnx.split(abstract_model(checkpoint.config, num_layers, dtype))
    flat = dict(state.flat_state())
    sources = _table(num_layers)
    with ExitStack() as stack:
        tensors = _open_tensors(checkpoint, tensor_names(num_layers), stack)
        wanted = {path: _Parameter(".".join(map(str, path)), flat[path].get_value()) for path in flat}
        _check_shapes(wanted.values(), sources, tensors)

        def read(parameter: _Parameter) -> jax.Array:
            parts = [tensors[name] for name in sources[parameter.name]]
            return _read_parameter(parameter, parts, place(parameter.name, parameter.shape))

        with ThreadPoolExecutor(max_workers=4) as pool:
            arrays = dict(zip(wanted, pool.map(read, wanted.values()), strict=True))
    for path, variable in flat.items():
        variable.set_value(arrays[path])
    return nnx.merge(graph, state)


def abstract_model(config: Qwen2Config, num_layers: int, dtype: DTypeLike) -> Qwen2:
    """The model with shapes and dtypes for parameters: enough to compile, costs no memory."""
    return nnx.eval_shape(lambda: Qwen2(config, num_layers, dtype))


def _table(num_layers: int) -> dict[str, tuple[str, ...]]:
    table: dict[str, tuple[str, ...]] = {"embedding": ("model.embed_tokens.weight",)}
    for layer in range(num_layers):
        for ours, theirs in _LAYER_TABLE.items():
            table[f"layers.{layer}.{ours}"] = tuple(f"model.layers.{layer}.{name}" for name in theirs)
    return table


@dataclass(frozen=True)
class _Parameter:
    name: str
    abstract: jax.ShapeDtypeStruct

    @property
    def shape(self) -> tuple[int, ...]:
        return self.abstract.shape

    @property
    def transposed(self) -> bool:
        return self.name.endswith(".kernel")


@dataclass(frozen=True)
class _Tensor:
    """One tensor of an open safetensors file."""

    name: str
    path: Path
    view: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.view.get_shape())


def _open_tensors(checkpoint: Checkpoint, names: list[str], stack: ExitStack) -> dict[str, _Tensor]:
    files = checkpoint.tensor_files(names)
    try:
        opened = {path: stack.enter_context(safe_open(path, framework="numpy")) for path in sorted(set(files.values()))}
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{checkpoint.folder}: a weight file is not readable as safetensors: {error}") from error
    held = {path: set(file.keys()) for path, file in opened.items()}
    missing = [f"{name} (should be in {path.name})" for name, path in files.items() if name not in held[path]]
    if missing:
        raise ModelError(f"{checkpoint.folder}: lacks {len(missing)} tensors: {', '.join(missing[:5])}")
    return {name: _Tensor(name, path, opened[path].get_slice(name)) for name, path in files.items()}


def _check_shapes(
    parameters: Iterable[_Parameter], sources: dict[str, tuple[str, ...]], tensors: dict[str, _Tensor]
) -> None:
    wrong = []
    for parameter in parameters:
        parts = [tensors[name] for name in sources[parameter.name]]
        total = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
        expected = parameter.shape[::-1] if parameter.transposed else parameter.shape
        if total != expected:
            names = " + ".join(part.name for part in parts)
            wrong.append(f"{parts[0].path.name}: {names} has shape {total}, config.json implies {expected}")
    if wrong:
        raise ModelError("weights do not fit their config:\n  " + "\n  ".join(wrong))


def _read_parameter(parameter: _Parameter, parts: list[_Tensor], sharding: Sharding) -> jax.Array:
    dtype = np.dtype(parameter.abstract.dtype)

    def read_slice(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None  # only a scalar has no index
        if not parameter.transposed:
            return _read_rows(parts, index[0], index[1:]).astype(dtype)
        inputs, outputs = index
        return np.ascontiguousarray(_read_rows(parts, outputs, (inputs,)).T.astype(dtype))

    return jax.make_array_from_callback(parameter.shape, sharding, read_slice)


def _read_rows(parts: list[_Tensor], rows: slice, rest: tuple[slice, ...]) -> np.ndarray:
    """Rows `rows` of the parts stacked on their first dimension, and `rest` of their other dimensions."""
    first, last, _ = rows.indices(sum(part.shape[0] for part in parts))
    pieces, offset = [], 0
    for part in parts:
        begin, end = max(first - offset, 0), min(last - offset, part.shape[0])
        if begin < end:
            pieces.append(part.view[(slice(begin, end), *rest)])
        offset += part.shape[0]
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
