import dataclasses
import itertools

import ml_dtypes
import numpy as np
import pytest

from layertap.demo.weights import WeightTensor, weight_tensors
from layertap.model.config import published_config

TINY = dataclasses.replace(
    published_config("0.5b"),
    hidden_size=64,
    intermediate_size=160,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    vocab_size=128,
)

# As the releases' model cards give them, in billions.
PARAMETERS = {"0.5b": 0.49, "1.5b": 1.54, "3b": 3.09, "7b": 7.61, "14b": 14.7, "32b": 32.5, "72b": 72.7}


def named(config, name):
    return next(tensor for tensor in weight_tensors(config) if tensor.name == name)


@pytest.mark.parametrize(("size", "billions"), PARAMETERS.items())
def test_a_published_size_has_its_published_number_of_parameters(size, billions):
    total = sum(tensor.size for tensor in weight_tensors(published_config(size)))
    assert total / 1e9 == pytest.approx(billions, rel=0.01)


def test_names_differ_and_a_tied_head_is_left_out():
    names = [tensor.name for tensor in weight_tensors(TINY)]
    assert len(names) == len(set(names)) == 2 + 12 * 3
    assert "lm_head.weight" not in names


def test_an_untied_head_is_there():
    untied = dataclasses.replace(TINY, tie_word_embeddings=False)
    assert named(untied, "lm_head.weight").shape == (128, 64)


def test_a_tensor_depends_on_its_name_and_seed_alone():
    shape, other = (3, 5), WeightTensor("b", (3, 5), 0.0, 1.0)
    one = WeightTensor("a", shape, 0.0, 1.0)
    assert np.array_equal(one.array(0, "float32"), one.array(0, "float32"))
    assert not np.array_equal(one.array(0, "float32"), one.array(1, "float32"))
    assert not np.array_equal(one.array(0, "float32"), other.array(0, "float32"))


def test_bfloat16_is_the_rounded_float32():
    tensor = named(TINY, "model.norm.weight")
    wide, narrow = tensor.array(0, "float32"), tensor.array(0, "bfloat16")
    assert narrow.dtype == ml_dtypes.bfloat16
    assert np.array_equal(wide.astype(ml_dtypes.bfloat16), narrow)


def test_chunks_are_bounded_and_make_the_whole():
    tensor = WeightTensor("big", (3, 1 << 20), 0.0, 1.0)
    chunks = list(tensor.chunks(0, "bfloat16"))
    assert max(chunk.size for chunk in chunks) <= 1 << 20
    assert np.array_equal(np.concatenate(chunks).reshape(tensor.shape), tensor.array(0, "bfloat16"))


def test_no_chunk_repeats_another():
    chunks = list(WeightTensor("big", (3, 1 << 20), 0.0, 1.0).chunks(0, "float32"))
    assert not any(np.array_equal(one, other) for one, other in itertools.combinations(chunks, 2))


@pytest.mark.parametrize(
    ("name", "mean", "spread"),
    [
        ("model.embed_tokens.weight", 0, 1),
        ("model.layers.0.input_layernorm.weight", 1, 0.2),
        ("model.layers.1.self_attn.q_proj.weight", 0, 64**-0.5),
        ("model.layers.1.self_attn.k_proj.bias", 0, 0.5),
        ("model.layers.1.self_attn.o_proj.weight", 0, (64 * 2 * 3) ** -0.5),
        ("model.layers.2.mlp.down_proj.weight", 0, (160 * 2 * 3) ** -0.5),
        ("model.norm.weight", 1, 0.2),
    ],
)
def test_numbers_are_spread_as_the_tensor_says(name, mean, spread):
    numbers = np.concatenate([named(TINY, name).array(seed, "float32").ravel() for seed in range(100)])
    assert numbers.mean() == pytest.approx(mean, abs=spread / 10)
    assert numbers.std() == pytest.approx(spread, rel=0.1)
