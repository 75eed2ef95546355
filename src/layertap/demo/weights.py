"""Random weights for the Qwen 2.5 architecture, with which mistakes show.

Fresh weights as libraries initialise them hide bugs: where norm scales are one and biases zero, a
forward pass that forgets them is right. Here scales spread around one, and biases are half as large
as what they are added to. Projections keep the variance of their input, and what a layer adds to
the residual stream is scaled by 1/sqrt(2 layers), so that the stream neither vanishes nor explodes
at any depth and width.

Every tensor has its own generator, seeded by (seed, tensor name), so any one can be made again
without the others. They come in chunks, so memory stays bounded at any model size. numpy keeps such
streams the same across platforms and, by custom rather than by promise, across versions.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from layertap.config.demo import WeightDtype
from layertap.model.config import Qwen2Config

NUMPY_DTYPES: dict[WeightDtype, np.dtype[Any]] = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
}

_CHUNK = 1 << 20  # numbers drawn at a time: 4 MiB of float32, which stays in the cache

_NORM_SPREAD = 0.2
_BIAS_SPREAD = 0.5


@dataclass(frozen=True)
class WeightTensor:
    """One tensor by its Hugging Face name, and the normal distribution of its numbers."""

    name: str
    shape: tuple[int, ...]
    mean: float
    spread: float

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    def chunks(self, seed: int, dtype: WeightDtype) -> Iterator[NDArray[Any]]:
        """The numbers in row-major order, piece by piece; they follow from seed, name and dtype."""
        digest = hashlib.sha256(f"{seed}/{self.name}".encode()).digest()
        generator = np.random.Generator(np.random.SFC64(int.from_bytes(digest, "little")))
        for start in range(0, self.size, _CHUNK):
            numbers = generator.standard_normal(min(_CHUNK, self.size - start), dtype=np.float32)
            yield (numbers * np.float32(self.spread) + np.float32(self.mean)).astype(NUMPY_DTYPES[dtype])


def weight_tensors(config: Qwen2Config) -> list[WeightTensor]:
    """Every tensor of such a checkpoint, in the order of the forward pass; no `lm_head` if tied."""
    vocabulary, hidden = config.vocab_size, config.hidden_size
    tensors = [WeightTensor("model.embed_tokens.weight", (vocabulary, hidden), 0.0, 1.0)]
    for layer in range(config.num_hidden_layers):
        tensors += _layer_tensors(config, f"model.layers.{layer}")
    tensors.append(_norm("model.norm", hidden))
    if not config.tie_word_embeddings:
        tensors.append(_projection("lm_head", vocabulary, hidden))
    return tensors


def _layer_tensors(config: Qwen2Config, layer: str) -> list[WeightTensor]:
    hidden, inner = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    share = 1 / math.sqrt(2 * config.num_hidden_layers)
    tensors = [_norm(f"{layer}.input_layernorm", hidden)]
    for name, width in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
        tensors.append(_projection(f"{layer}.self_attn.{name}", width, hidden))
        tensors.append(WeightTensor(f"{layer}.self_attn.{name}.bias", (width,), 0.0, _BIAS_SPREAD))
    return [
        *tensors,
        _projection(f"{layer}.self_attn.o_proj", hidden, queries, share),
        _norm(f"{layer}.post_attention_layernorm", hidden),
        _projection(f"{layer}.mlp.gate_proj", inner, hidden),
        _projection(f"{layer}.mlp.up_proj", inner, hidden),
        _projection(f"{layer}.mlp.down_proj", hidden, inner, share),
    ]


def _projection(name: str, outputs: int, inputs: int, gain: float = 1.0) -> WeightTensor:
    return WeightTensor(f"{name}.weight", (outputs, inputs), 0.0, gain / math.sqrt(inputs))


def _norm(name: str, width: int) -> WeightTensor:
    return WeightTensor(f"{name}.weight", (width,), 1.0, _NORM_SPREAD)
