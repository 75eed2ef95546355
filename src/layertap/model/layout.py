"""Which Hugging Face tensors make each of our parameters, and their shapes.

Kernels are [inputs, outputs], the transpose of what torch stores. Query, key and value are side by
side in one kernel, and so are gate and up.
"""

from dataclasses import replace
from functools import cache

import numpy as np
from flax import nnx

from layertap.model.config import DecoderConfig
from layertap.model.decoder import Decoder

PREFIXES = ("model.", "", "model.language_model.", "language_model.model.", "language_model.")
"""What comes before `layers.0` in a checkpoint: that of the bare decoder has none, those of models
with images have a part more."""


def tensor_names(config: DecoderConfig, num_layers: int) -> list[str]:
    """The Hugging Face names of every tensor that the first `num_layers` layers need."""
    return [name for sources in sources_of(config, num_layers).values() for name in sources]


def sources_of(config: DecoderConfig, num_layers: int) -> dict[str, tuple[str, ...]]:
    """Parameter -> its tensors, for the embedding and the first layers."""
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


def is_transposed(name: str) -> bool:
    """Whether a parameter is the transpose of the stored tensor."""
    return name.endswith(".kernel")


def source_shapes(parameter: str, shape: tuple[int, ...], config: DecoderConfig) -> list[tuple[int, ...]]:
    """The shapes of a parameter's tensors, which are side by side."""
    outputs, *inputs = shape[::-1] if is_transposed(parameter) else shape
    heads, kv_heads = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
    parts = [outputs]
    if config.fused:
        return [shape[::-1] if is_transposed(parameter) else shape]
    if ".qkv." in parameter:
        parts = [heads, kv_heads, kv_heads]
    elif ".gate_up." in parameter:
        parts = [config.intermediate_size] * 2
    return [(part, *inputs) for part in parts]


@cache
def matrix_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """The shape of each matrix of a layer by its name there, such as `mlp.down_proj.weight`."""
    small = replace(config, vocab_size=1)
    layer = nnx.eval_shape(lambda: Decoder(small, 1, np.float32)).layers[0]
    parameters = {
        ".".join(map(str, path)): leaf.get_value().shape for path, leaf in nnx.to_flat_state(nnx.state(layer))
    }
    return {
        name: shape
        for parameter, names in _layer_table(config).items()
        if is_transposed(parameter)
        for name, shape in zip(
            names, source_shapes(f"layers.0.{parameter}", parameters[parameter], config), strict=True
        )
    }
