"""What the demo's checkpoints hold, on disk and loaded by Hugging Face."""

import dataclasses
import json
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open

from layertap.demo.checkpoint import WeightTensor, config_json, weight_tensors, write_checkpoint
from layertap.errors import ModelError, PromptError, UsageError
from layertap.model.config import DecoderConfig, published_config
from layertap.model.families import read_config

SMALL = dataclasses.replace(
    published_config("0.5b"),
    hidden_size=64,
    intermediate_size=160,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    vocab_size=768,
)
# As the releases' model cards give them, in billions.
PARAMETERS = {"0.5b": 0.49, "1.5b": 1.54, "3b": 3.09, "7b": 7.61, "14b": 14.7, "32b": 32.5, "72b": 72.7}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    write_checkpoint(folder, dtype="float32")
    return folder


@pytest.fixture(scope="module")
def model(tiny):
    return transformers.AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)


def stored(folder):
    """Return the tensors of each file."""
    files = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            files[path.name] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return files


def numbers(tensor, seed=0, dtype="float32"):
    return np.concatenate(list(tensor.chunks(seed, dtype)))


def hidden_states(model):
    with torch.no_grad():
        return model(torch.tensor([[5, 17, 200, 3, 3, 90, 41, 600]]), output_hidden_states=True).hidden_states


def test_a_tiny_checkpoint_fits_its_tokenizer(tiny):
    described = json.loads((tiny / "tokenizer.json").read_text())
    tokens = len(described["model"]["vocab"]) + len(described["added_tokens"])
    assert read_config(tiny).vocab_size % 64 == 0
    assert tokens <= read_config(tiny).vocab_size < tokens + 64


def test_every_tensor_on_the_disk_can_be_made_again_alone(tiny):
    weights = stored(tiny)["model.safetensors"]
    tensors = weight_tensors(read_config(tiny))
    assert weights.keys() == {tensor.name for tensor in tensors}
    assert all(np.array_equal(weights[tensor.name].ravel(), numbers(tensor)) for tensor in tensors)


def test_another_process_writes_the_same_bytes(tiny, tmp_path):
    script = "import sys, pathlib; from layertap.demo.checkpoint import write_checkpoint as write;"
    script += "write(pathlib.Path(sys.argv[1]), dtype='float32')"
    subprocess.run([sys.executable, "-c", script, tmp_path / "again"], check=True)
    names = sorted(path.name for path in tiny.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "again").iterdir())
    assert all((tiny / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in names)


def test_large_weights_are_split_under_an_index(tiny, tmp_path):
    write_checkpoint(tmp_path, dtype="float32", max_file_bytes=100_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    whole, files = stored(tiny)["model.safetensors"], stored(tmp_path)
    split = {name: array for held in files.values() for name, array in held.items()}
    assert [*files] == [f"model-{number:05}-of-{len(files):05}.safetensors" for number in range(1, len(files) + 1)]
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in split.values())
    assert index["weight_map"] == {name: file for file, held in files.items() for name in held}
    assert whole.keys() == split.keys()
    assert all(np.array_equal(whole[name], split[name]) for name in whole)
    sizes = [[array.nbytes for array in held.values()] for held in files.values()]
    assert all(sum(held) <= 100_000 or len(held) == 1 for held in sizes)
    assert any(len(held) > 1 for held in sizes)


@pytest.mark.parametrize(
    ("wrong", "error", "complaint"),
    [
        ({"size": SMALL, "tokenizer": None, "layers": 0}, UsageError, "at least 1"),
        ({"max_file_bytes": 0}, UsageError, "at least 1"),
        ({"size": dataclasses.replace(SMALL, vocab_size=512)}, ModelError, "does not cover the tokenizer's 768 tokens"),
        ({"size": "9b"}, ModelError, "'9b'"),
    ],
)
def test_what_makes_no_checkpoint_is_refused(tmp_path, wrong, error, complaint):
    with pytest.raises(error, match=complaint):
        write_checkpoint(tmp_path, **wrong)
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize("name", ["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json"])
def test_a_folder_that_holds_a_checkpoint_is_left_alone(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ModelError, match=f"already holds {name}"):
        write_checkpoint(tmp_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_a_folder_without_a_sound_tokenizer_is_refused(tmp_path):
    with pytest.raises(PromptError, match=r"tokenizer\.json: no such file"):
        write_checkpoint(tmp_path / "new", tokenizer=tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(PromptError, match=r"tokenizer\.json: is not a tokenizer"):
        write_checkpoint(tmp_path / "new", tokenizer=tmp_path)


@pytest.mark.parametrize(
    "shape",
    [published_config("7b"), dataclasses.replace(SMALL, head_dim=128, rope_theta=1e4)],
    ids=["7b", "heads of unusual width"],
)
def test_a_config_survives_being_written_and_read(tmp_path, shape):
    (tmp_path / "config.json").write_text(json.dumps(config_json(shape, "bfloat16")))
    assert read_config(tmp_path) == shape


def test_the_config_is_read_as_the_one_transformers_would_make(tmp_path):
    written = config_json(published_config("72b"), "bfloat16")
    (tmp_path / "config.json").write_text(json.dumps(written))
    names = {field.name for field in dataclasses.fields(DecoderConfig)} & written.keys() - {"model_type"}
    shape = {name: written[name] for name in names}
    theta = shape.pop("rope_theta")
    own = transformers.Qwen2Config(
        **shape,
        architectures=["Qwen2ForCausalLM"],
        max_window_layers=shape["num_hidden_layers"],
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        dtype="bfloat16",
    )
    assert transformers.AutoConfig.from_pretrained(tmp_path).to_diff_dict() == own.to_diff_dict()


@pytest.mark.parametrize(("dtype", "tied", "max_file_bytes"), [("bfloat16", True, None), ("float32", False, 100_000)])
def test_it_loads_with_nothing_missing_and_nothing_left_over(tmp_path, max_file_bytes, dtype, tied):
    shape = dataclasses.replace(SMALL, tie_word_embeddings=tied)
    write_checkpoint(tmp_path, shape, dtype=dtype, max_file_bytes=max_file_bytes)
    model, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True, dtype="auto")
    assert not any(report.values())
    assert model.dtype == getattr(torch, dtype)


def test_the_residual_stream_neither_vanishes_nor_explodes(model):
    sizes = [float(state.square().mean().sqrt()) for state in hidden_states(model)]
    assert all(0.5 < size < 2.5 for size in sizes)


@pytest.mark.parametrize(
    "forgotten",
    [
        "q_proj.bias",
        "k_proj.bias",
        "v_proj.bias",
        "input_layernorm.weight",
        "post_attention_layernorm.weight",
        "model.norm.weight",
    ],
)
def test_forgetting_norm_scales_or_biases_shows(tiny, model, forgotten):
    forgetful = transformers.AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in forgetful.named_parameters():
            if name.endswith(forgotten):
                parameter.fill_(0.0 if forgotten.endswith("bias") else 1.0)
    right, wrong = hidden_states(model)[-1], hidden_states(forgetful)[-1]
    assert (right - wrong).norm() / right.norm() > 0.02


@pytest.mark.parametrize(("size", "billions"), PARAMETERS.items())
def test_a_published_size_has_its_published_number_of_parameters(size, billions):
    total = sum(tensor.size for tensor in weight_tensors(published_config(size)))
    assert total / 1e9 == pytest.approx(billions, rel=0.01)


def test_chunks_are_bounded_and_different_and_bfloat16_is_the_rounded_float32():
    tensor = WeightTensor("big", (3, 1 << 20), 0.0, 1.0)
    wide, narrow = (list(tensor.chunks(0, dtype)) for dtype in ("float32", "bfloat16"))
    assert [chunk.size for chunk in wide] == [1 << 20] * 3
    assert not np.array_equal(wide[0], wide[1])
    assert narrow[1].dtype == ml_dtypes.bfloat16
    assert np.array_equal(wide[1].astype(ml_dtypes.bfloat16), narrow[1])


def test_the_demo_imports_no_framework():
    script = (
        "import sys, layertap.demo.checkpoint, layertap.demo.tasks;"
        "print(sorted({'jax', 'torch', 'transformers', 'flax'} & sys.modules.keys()))"
    )
    found = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "[]"
