"""A Qwen 2.5 checkpoint with random weights, in the layout of Hugging Face, without a download.

It is for demos, tests and benchmarks: shapes and file layout are real, the activations mean
nothing. Weights are written to disk as they are drawn, so memory stays at some tens of MiB for any
size. `config.json` is written last, so a folder that has one is complete. The safetensors layout (a
length, a JSON header, raw bytes) is written by hand here, because the library needs whole files in
memory.

Weights as libraries initialise them hide bugs: if norm scales are one and biases zero, a forward
pass that forgets them is still right. Here scales spread around one, and biases are half as large
as what they are added to. Projections keep the variance of their input, and what a layer adds to
the residual stream is scaled by 1/sqrt(2 layers), so the stream neither vanishes nor explodes at
any depth and width.

Every tensor has its own generator, seeded by (seed, tensor name), so each can be made again without
the others. Tensors come in chunks, so memory stays bounded for any model size. numpy keeps such
streams the same across platforms and, by custom rather than by promise, across versions.
"""

import dataclasses
import hashlib
import json
import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from layertap.demo.tokenizer import demo_texts, write_tokenizer
from layertap.errors import ModelError, UsageError
from layertap.model.config import DecoderConfig, published_config
from layertap.objects.files import atomic_write
from layertap.prompts import load_tokenizer

WeightDtype = Literal["bfloat16", "float32"]
NUMPY_DTYPES: dict[WeightDtype, np.dtype[Any]] = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
}

_CHUNK = 1 << 20  # numbers drawn at a time: 4 MiB of float32, which stays in the cache

_NORM_SPREAD = 0.2
_BIAS_SPREAD = 0.5

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)
_SAFETENSORS_DTYPES: dict[WeightDtype, str] = {"bfloat16": "BF16", "float32": "F32"}
_SHAPE = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "rms_norm_eps",
    "rope_theta",
    "tie_word_embeddings",
)
_CONTEXT = 32_768  # as published; only text generation reads it


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
        """Yield the numbers in row-major order in chunks; seed, name and dtype decide them."""
        digest = hashlib.sha256(f"{seed}/{self.name}".encode()).digest()
        generator = np.random.Generator(np.random.SFC64(int.from_bytes(digest, "little")))
        for start in range(0, self.size, _CHUNK):
            numbers = generator.standard_normal(min(_CHUNK, self.size - start), dtype=np.float32)
            yield (numbers * np.float32(self.spread) + np.float32(self.mean)).astype(NUMPY_DTYPES[dtype])


def write_checkpoint(
    folder: Path,
    size: str | DecoderConfig = "tiny",
    *,
    seed: int = 0,
    dtype: WeightDtype = "bfloat16",
    tokenizer: Path | None = None,
    max_file_bytes: int | None = None,
    layers: int | None = None,
) -> DecoderConfig:
    """Write a checkpoint with its tokenizer into `folder` and return its shape.

    The same arguments give the same bytes.

    `size` is "tiny" (four layers of width 64), a published size ("0.5b" to "72b") or your own
    shape; `layers` replaces its number of layers. `tokenizer` is a folder to copy the tokenizer
    from; without it, one is trained on `demo_texts`. With `max_file_bytes`, larger weights are
    split into several files with an index; a file is larger only if a single tensor is.

    Raises ModelError if `folder` already holds a checkpoint, the size is unknown or the vocabulary
    does not cover the tokenizer; PromptError if `tokenizer` holds none; UsageError for invalid
    numbers.
    """
    if (layers is not None and layers < 1) or (max_file_bytes is not None and max_file_bytes < 1):
        raise UsageError(f"layers ({layers}) and max_file_bytes ({max_file_bytes}) must be at least 1 if given")
    _refuse_occupied(folder)
    shape = published_config(size) if isinstance(size, str) and size != "tiny" else size
    tokens = _write_tokenizer(folder, tokenizer)
    config = _tiny_config(tokens) if isinstance(shape, str) else shape
    if layers is not None:
        config = dataclasses.replace(config, num_hidden_layers=layers)
    if config.vocab_size < tokens:
        raise ModelError(f"{folder}: vocab_size {config.vocab_size} does not cover the tokenizer's {tokens} tokens")
    _write_weights(folder, weight_tensors(config), seed, dtype, max_file_bytes)
    _write_json(folder / "config.json", config_json(config, dtype))
    return config


def config_json(config: DecoderConfig, dtype: WeightDtype) -> dict[str, Any]:
    """Return the `config.json` of such a checkpoint, like Qwen 2.5's; transformers 4 and 5 read it.

    Token ids (`bos_token_id`, `eos_token_id`) are left out: they belong to a tokenizer, and nothing
    here generates.
    """
    shape = {name: getattr(config, name) for name in _SHAPE}
    if config.head_dim == config.hidden_size // config.num_attention_heads:
        del shape["head_dim"]  # every reader derives it; published files omit it
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "max_position_embeddings": _CONTEXT,
        "use_sliding_window": False,
        "sliding_window": _CONTEXT,
        "max_window_layers": config.num_hidden_layers,
        "torch_dtype": dtype,
        "use_cache": True,
        **shape,
    }


def _tiny_config(tokens: int) -> DecoderConfig:
    return dataclasses.replace(
        published_config("0.5b"),
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=-(-tokens // 64) * 64,  # rounded up: real vocabularies have spare rows too
    )


def _refuse_occupied(folder: Path) -> None:
    held = [*folder.glob("config.json"), *folder.glob("model*.safetensors"), *folder.glob("model*.safetensors.*.json")]
    if held:
        raise ModelError(f"{folder}: already holds {held[0].name}; remove that checkpoint or choose another folder")


def _write_tokenizer(folder: Path, source: Path | None) -> int:
    """Write the tokenizer; return its highest id plus one, because the embedding is indexed by
    id.
    """
    if source is None:
        return write_tokenizer(folder, demo_texts())
    tokens = load_tokenizer(source).vocab_size
    for path in (source / name for name in _TOKENIZER_FILES):
        if path.is_file():
            content = path.read_bytes()
            with atomic_write(folder / path.name) as file:
                file.write(content)
    return tokens


def _write_weights(
    folder: Path, tensors: Sequence[WeightTensor], seed: int, dtype: WeightDtype, max_file_bytes: int | None
) -> None:
    files = _split(tensors, dtype, max_file_bytes)
    names = [f"model-{number:05}-of-{len(files):05}.safetensors" for number in range(1, len(files) + 1)]
    if len(files) == 1:
        names = ["model.safetensors"]
    for name, held in zip(names, files, strict=True):
        _write_safetensors(folder / name, held, seed, dtype)
    if len(files) > 1:
        places = {tensor.name: name for name, held in zip(names, files, strict=True) for tensor in held}
        total = sum(_num_bytes(tensor, dtype) for tensor in tensors)
        _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": places})


def _split(tensors: Iterable[WeightTensor], dtype: WeightDtype, limit: int | None) -> list[list[WeightTensor]]:
    files: list[list[WeightTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        size = _num_bytes(tensor, dtype)
        if limit is not None and files[-1] and filled + size > limit:
            files.append([])
            filled = 0
        files[-1].append(tensor)
        filled += size
    return files


def _write_safetensors(path: Path, tensors: Iterable[WeightTensor], seed: int, dtype: WeightDtype) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers 4 requires it
    end = 0
    for tensor in tensors:
        begin, end = end, end + _num_bytes(tensor, dtype)
        header[tensor.name] = {"dtype": _SAFETENSORS_DTYPES[dtype], "shape": tensor.shape, "data_offsets": (begin, end)}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # the data begin at a multiple of eight bytes
    with atomic_write(path) as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for tensor in tensors:
            for chunk in tensor.chunks(seed, dtype):
                file.write(chunk.tobytes())


def _num_bytes(tensor: WeightTensor, dtype: WeightDtype) -> int:
    return tensor.size * NUMPY_DTYPES[dtype].itemsize


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with atomic_write(path) as file:
        file.write(json.dumps(content, indent=2).encode() + b"\n")


def weight_tensors(config: DecoderConfig) -> list[WeightTensor]:
    """Return every tensor of such a checkpoint, in forward order; no `lm_head` if tied."""
    vocabulary, hidden = config.vocab_size, config.hidden_size
    tensors = [WeightTensor("model.embed_tokens.weight", (vocabulary, hidden), 0.0, 1.0)]
    for layer in range(config.num_hidden_layers):
        tensors += _layer_tensors(config, f"model.layers.{layer}")
    tensors.append(_norm("model.norm", hidden))
    if not config.tie_word_embeddings:
        tensors.append(_projection("lm_head", vocabulary, hidden))
    return tensors


def _layer_tensors(config: DecoderConfig, layer: str) -> list[WeightTensor]:
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
