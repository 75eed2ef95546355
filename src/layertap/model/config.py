"""What a Qwen 2.5 checkpoint says of itself in `config.json`, checked before any weight is read.

Field names and meanings are those of `transformers.Qwen2Config`. What Layertap does not implement
(rope scaling, sliding windows, quantised weights, other architectures) is refused here by name,
because running it all the same would give plausible but wrong activations. This module does not
import JAX.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layertap.core.taps import Site
from layertap.errors import ModelError

_REQUIRED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")

MODEL_TYPE = "qwen2"

# Rope settings are in `rope_parameters` since transformers 5, before in `rope_scaling`, or in both.
_ROPE_KEYS = ("rope_parameters", "rope_scaling")


@dataclass(frozen=True)
class Qwen2Config:
    """The shape of a Qwen 2.5 decoder: everything in `config.json` that decides its activations."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool

    def __post_init__(self) -> None:
        """Refuse shapes that no attention layer can have."""
        if self.num_attention_heads % self.num_key_value_heads:
            raise ModelError(
                f"config.json: {self.num_attention_heads} attention heads cannot share"
                f" {self.num_key_value_heads} key-value heads evenly"
            )
        if self.head_dim <= 0 or self.head_dim % 2:
            raise ModelError(
                f"config.json: head_dim {self.head_dim} is not a number of pairs, which rotary embeddings turn"
            )
        if not 2.0**-126 <= self.rope_theta < 2.0**127:
            raise ModelError(f"config.json: rope_theta {self.rope_theta} is not a number that float32 can hold")

    def width(self, site: Site) -> int:
        """How many numbers a token has at `site`. Nothing else in Layertap knows this."""
        match site:
            case "heads":
                return self.num_attention_heads * self.head_dim
            case "neurons":
                return self.intermediate_size
            case _:
                return self.hidden_size


# The published shapes (config.json of Qwen/Qwen2.5-*). Base, Instruct, Coder and Math of one size
# share theirs; what differs (rope_theta: 1e4 for Math, else 1e6) is read from the checkpoint.
_PUBLISHED = {
    #        hidden, intermediate, layers, heads, kv heads, vocabulary, tied
    "0.5b": (896, 4864, 24, 14, 2, 151_936, True),
    "1.5b": (1536, 8960, 28, 12, 2, 151_936, True),
    "3b": (2048, 11_008, 36, 16, 2, 151_936, True),
    "7b": (3584, 18_944, 28, 28, 4, 152_064, False),
    "14b": (5120, 13_824, 48, 40, 8, 152_064, False),
    "32b": (5120, 27_648, 64, 40, 8, 152_064, False),
    "72b": (8192, 29_568, 80, 64, 8, 152_064, False),
}


def published_config(size: str) -> Qwen2Config:
    """The shape of the Qwen 2.5 release of this size, such as "0.5b"; raises ModelError."""
    if size not in _PUBLISHED:
        raise ModelError(f"no Qwen 2.5 of size {size!r} was published; sizes are {', '.join(_PUBLISHED)}")
    hidden, intermediate, layers, heads, kv_heads, vocabulary, tied = _PUBLISHED[size]
    return Qwen2Config(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=hidden // heads,
        vocab_size=vocabulary,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        tie_word_embeddings=tied,
    )


def read_config(folder: Path) -> Qwen2Config:
    """Read `folder/config.json`.

    Raises ModelError if it is missing or malformed, or describes a model that Layertap does not
    run.
    """
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file; --model_path must be a Hugging Face checkpoint folder") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ModelError(f"{path}: holds a {type(raw).__name__}, not an object")
    _refuse_unsupported(raw, path)
    return _parse(raw, path)


def _refuse_unsupported(raw: Mapping[str, Any], path: Path) -> None:
    if raw.get("model_type") != MODEL_TYPE:
        raise ModelError(f"{path}: model_type is {raw.get('model_type')!r}; Layertap runs 'qwen2' (Qwen2 and Qwen 2.5)")
    if raw.get("quantization_config"):
        method = _object(raw, "quantization_config", path).get("quant_method", "unknown")
        raise ModelError(f"{path}: weights are quantised ({method}); give the bfloat16 or float32 release")
    layer_types = raw.get("layer_types") or []
    if not isinstance(layer_types, list):
        raise ModelError(f"{path}: layer_types is {layer_types!r}, not a list")
    if raw.get("use_sliding_window") or any(kind != "full_attention" for kind in layer_types):
        raise ModelError(f"{path}: sliding-window attention is switched on, which Layertap does not implement")
    if raw.get("hidden_act", "silu") != "silu":
        raise ModelError(f"{path}: hidden_act is {raw['hidden_act']!r}; Qwen 2.5 uses 'silu'")
    for key in _ROPE_KEYS:
        rope = _object(raw, key, path)
        rope_type = rope.get("rope_type", rope.get("type", "default"))
        if rope_type != "default":
            raise ModelError(
                f"{path}: {key} asks for rope scaling of type {rope_type!r}, which is not implemented;"
                " remove it for prompts that fit"
            )


def _object(raw: Mapping[str, Any], key: str, path: Path) -> Mapping[str, Any]:
    value = raw.get(key) or {}
    if not isinstance(value, dict):
        raise ModelError(f"{path}: {key} is {value!r}, not an object")
    return value


def _rope_theta(raw: Mapping[str, Any], path: Path) -> float:
    """The base of the rotary frequencies, from the three places that transformers writes it to."""
    places = {key: _object(raw, key, path).get("rope_theta") for key in _ROPE_KEYS}
    places["rope_theta"] = raw.get("rope_theta")
    given = {key: _positive(value, f"{key}, rope_theta", path) for key, value in places.items() if value is not None}
    if len(set(given.values())) > 1:
        raise ModelError(f"{path}: rope_theta is given twice, and differs: {given}")
    return next(iter(given.values()), 10_000.0)


def _positive(value: object, key: str, path: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ModelError(f"{path}: {key} is {value!r}, not a positive number")
    return float(value)


def _parse(raw: Mapping[str, Any], path: Path) -> Qwen2Config:
    missing = [key for key in _REQUIRED if raw.get(key) is None]
    if missing:
        raise ModelError(f"{path}: lacks {', '.join(missing)}")
    given = {key: raw[key] for key in (*_REQUIRED, "num_key_value_heads", "head_dim") if raw.get(key) is not None}
    wrong = [f"{key} ({value!r})" for key, value in given.items() if not isinstance(value, int) or value <= 0]
    if wrong:
        raise ModelError(f"{path}: {', '.join(wrong)} must be positive whole numbers")
    heads = raw["num_attention_heads"]
    derived = {"num_key_value_heads": heads, "head_dim": raw["hidden_size"] // heads}
    return Qwen2Config(
        **{**derived, **given},
        rms_norm_eps=_positive(raw.get("rms_norm_eps", 1e-6), "rms_norm_eps", path),
        rope_theta=_rope_theta(raw, path),
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
    )
