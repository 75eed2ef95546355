"""Gemma 2, and the text part of Gemma 3.

Source: `transformers.models.gemma2` and `gemma3`. Embeddings are multiplied by the square root of
their width. Norms store their scale minus 1, and also follow attention and MLP. Layers with a
window alternate with layers without. Gemma 2 caps the attention scores (it also caps values after
the last layer, which no tap reads). Gemma 3 has norms on each head's queries and keys, and another
rotary base in the layers with a window.
"""

import math
from typing import Any

from layertap.model.config import DecoderConfig, Rope
from layertap.model.config_file import ConfigFile
from layertap.model.families.common import require_activation, windows_by_type

_USUAL: dict[str, Any] = {"num_key_value_heads": 4, "head_dim": 256, "sliding_window": 4096}
# Releases with images omit from their `text_config` what is the default in transformers.
_USUAL_3: dict[str, Any] = {
    "num_attention_heads": 8,
    "vocab_size": 262_208,
    "max_position_embeddings": 131_072,
    "sliding_window_pattern": 6,
}


def read_gemma2(file: ConfigFile) -> DecoderConfig:
    """The shape from a `config.json` of model_type gemma2."""
    file = file.with_defaults(**_USUAL, max_position_embeddings=8192, attn_logit_softcapping=50.0)
    layers = file.sizes()["num_hidden_layers"]
    rope = file.rope()
    cap = file.raw["attn_logit_softcapping"]
    windows = windows_by_type(file, file.whole("sliding_window"), [layer % 2 == 0 for layer in range(layers)])
    return _read(file, "gemma2", rope, windows, score_cap=None if cap is None else float(cap))


def read_gemma3(file: ConfigFile) -> DecoderConfig:
    """The shape from one of model_type gemma3_text."""
    file = file.with_defaults(**_USUAL, **_USUAL_3)
    every = file.raw["sliding_window_pattern"]
    layers = file.sizes()["num_hidden_layers"]
    windows = windows_by_type(file, file.whole("sliding_window"), [(layer + 1) % every != 0 for layer in range(layers)])
    by_type = file.mapping("rope_parameters")
    if "full_attention" in by_type:  # as transformers 5 writes it
        rope, local = (
            ConfigFile(
                file.path, {**file.raw, "rope_theta": None, "rope_scaling": None, "rope_parameters": by_type.get(kind)}
            ).rope(usual)
            for kind, usual in (("full_attention", 1e6), ("sliding_attention", 1e4))
        )
    else:
        rope, local = file.rope(1e6), Rope(file.number("rope_local_base_freq", 1e4))
    if file.raw.get("attn_logit_softcapping") is not None:
        file.refuse("attn_logit_softcapping is set, which no Gemma 3 has")
    return _read(file, "gemma3_text", rope, windows, local_rope=local, head_norms=True)


def _read(
    file: ConfigFile, model_type: str, rope: Rope, windows: tuple[int | None, ...], **peculiar: object
) -> DecoderConfig:
    sizes = file.sizes()
    if file.flag("use_bidirectional_attention", False):
        file.refuse("asks for attention to later tokens, which Layertap does not implement")
    biased = file.flag("attention_bias", False)
    return DecoderConfig(
        **sizes,
        rope_theta=rope.theta,
        rope=None if rope.kind == "default" else rope,
        tie_word_embeddings=file.flag("tie_word_embeddings", True),
        model_type=model_type,
        qkv_bias=biased,
        output_bias=biased,
        offset_norms=True,
        norms_after=True,
        activation=require_activation(file, "gelu_pytorch_tanh", "hidden_activation"),
        embedding_scale=math.sqrt(sizes["hidden_size"]),
        query_scale=file.number("query_pre_attn_scalar", 256.0) ** -0.5,
        windows=windows,
        **peculiar,  # type: ignore[arg-type]
    )
