"""Qwen 2 and 2.5 (also Coder, Math, QwQ and R1-Distill-Qwen), and dense Qwen 3.

Source: `transformers.models.qwen2` and `qwen3`. Qwen 2 has biases on query, key and value. Qwen 3
has none, but has a norm on each head's queries and keys. Both may give the upper layers a window
(`use_sliding_window`); no release has switched it on. The 1M releases use dual chunk attention,
which transformers lacks too: they are refused by name.
"""

from typing import Any

from layertap.model.config import DecoderConfig
from layertap.model.config_file import ConfigFile
from layertap.model.families.common import require_activation, windows_by_type

_USUAL: dict[str, Any] = {
    "num_key_value_heads": 32,
    "max_position_embeddings": 32_768,
    "sliding_window": 4096,
    "max_window_layers": 28,
}


def read_qwen2(file: ConfigFile) -> DecoderConfig:
    """The shape from a `config.json` of model_type qwen2."""
    return _read(file.with_defaults(**_USUAL), "qwen2", qkv_bias=True, output_bias=False)


def read_qwen3(file: ConfigFile) -> DecoderConfig:
    """The shape from one of model_type qwen3."""
    file = file.with_defaults(**_USUAL, head_dim=128)
    biased = file.flag("attention_bias", False)
    return _read(file, "qwen3", qkv_bias=biased, output_bias=biased, head_norms=True)


def _read(file: ConfigFile, model_type: str, **peculiar: bool) -> DecoderConfig:
    if file.mapping("dual_chunk_attention_config"):
        file.refuse("asks for dual chunk attention, which Layertap does not implement; give a release without it")
    rope = file.rope()
    window = file.whole("sliding_window") if file.flag("use_sliding_window", False) else None
    return DecoderConfig(
        **file.sizes(),
        rope_theta=rope.theta,
        rope=None if rope.kind == "default" else rope,
        tie_word_embeddings=file.flag("tie_word_embeddings", False),
        model_type=model_type,
        activation=require_activation(file, "silu"),
        windows=windows_by_type(file, window, _upper_layers(file, window)),
        **peculiar,  # type: ignore[arg-type]
    )


def _upper_layers(file: ConfigFile, window: int | None) -> list[bool]:
    """Which layers have the window, if the file does not list them."""
    first = file.raw["max_window_layers"]
    layers = range(file.sizes()["num_hidden_layers"])
    return [window is not None and layer >= first for layer in layers]
