"""The checkpoint as Hugging Face sees it: what it loads, and that no weight can be forgotten without being noticed."""

import dataclasses
import json

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from layertap.demo.checkpoint import config_json, write_checkpoint  # noqa: E402
from layertap.model.config import published_config  # noqa: E402

TOKENS = [[5, 17, 200, 3, 3, 90, 41, 600]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(folder, dtype="float32")
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def hidden_states(model):
    with torch.no_grad():
        return model(torch.tensor(TOKENS), output_hidden_states=True).hidden_states


@pytest.mark.parametrize("max_file_bytes", [None, 100_000])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("tied", [True, False])
def test_it_loads_with_nothing_missing_and_nothing_left_over(tmp_path, max_file_bytes, dtype, tied):
    shape = dataclasses.replace(
        published_config("0.5b"),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        head_dim=16,
        vocab_size=768,
        tie_word_embeddings=tied,
    )
    write_checkpoint(tmp_path, shape, dtype=dtype, max_file_bytes=max_file_bytes)
    model, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True, dtype="auto")
    assert not any(report.values())
    assert model.dtype == getattr(torch, dtype)


@pytest.mark.parametrize("size", ["0.5b", "72b"])
def test_the_config_is_read_as_the_one_transformers_would_make(tmp_path, size):
    shape = published_config(size)
    (tmp_path / "config.json").write_text(json.dumps(config_json(shape, "bfloat16")))
    own = transformers.Qwen2Config(
        architectures=["Qwen2ForCausalLM"],
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        max_window_layers=shape.num_hidden_layers,
        tie_word_embeddings=shape.tie_word_embeddings,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        dtype="bfloat16",
    )
    assert transformers.AutoConfig.from_pretrained(tmp_path).to_diff_dict() == own.to_diff_dict()


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
def test_forgetting_norm_scales_or_biases_shows(folder, model, forgotten):
    forgetful = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in forgetful.named_parameters():
            if name.endswith(forgotten):
                parameter.fill_(0.0 if forgotten.endswith("bias") else 1.0)
    right, wrong = hidden_states(model)[-1], hidden_states(forgetful)[-1]
    assert (right - wrong).norm() / right.norm() > 0.02
