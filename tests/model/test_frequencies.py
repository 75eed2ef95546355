"""The rotary frequencies against transformers' own, bit by bit."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

from layertap.model.config import DecoderConfig, Rope, published_config
from layertap.model.decoder import rotation
from layertap.model.frequencies import inverse_frequencies

_THETAS = [*(digit * 10.0**power for digit in (1, 2, 2.5, 5, 8) for power in range(3, 9)), *(10.0 ** np.arange(-2, 30))]
_DRAWN = [float(theta) for theta in 10 ** np.random.default_rng(14).uniform(0, 10, 200)]


def theirs(head_dim: int, theta: float) -> np.ndarray:
    config = transformers.Qwen2Config(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        head_dim=head_dim,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
    )
    frequencies = Qwen2RotaryEmbedding(config).inv_freq
    assert frequencies.dtype == torch.float32
    return frequencies.numpy()


def different_bits(ours: np.ndarray, other: np.ndarray) -> np.ndarray:
    assert ours.dtype == other.dtype == np.float32
    assert ours.shape == other.shape
    return np.abs(ours.view(np.int32) - other.view(np.int32))


@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_frequencies_have_the_bits_of_transformers(head_dim: int) -> None:
    wrong = [
        theta
        for theta in (*_THETAS, *_DRAWN)
        if different_bits(inverse_frequencies(head_dim, Rope(theta)), theirs(head_dim, theta)).any()
    ]
    assert not wrong


@pytest.mark.parametrize("head_dim", [2, 16, 32, 48, 80, 96, 160])
def test_frequencies_that_do_not_fill_vectors(head_dim: int) -> None:
    """Here torch gives other bits on a processor with AVX512 than on one without. The power then
    differs by one last bit, and its inverse by two at most.
    """
    allowed = 0 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 2
    for theta in (*_THETAS, *_DRAWN):
        assert different_bits(inverse_frequencies(head_dim, Rope(theta)), theirs(head_dim, theta)).max() <= allowed


@pytest.mark.parametrize("size", ["0.5b", "7b"])
@pytest.mark.parametrize("theta", [1e4, 1e6])
def test_the_compiled_rotation_has_the_angles_of_transformers(size: str, theta: float) -> None:
    config: DecoderConfig = replace(published_config(size), rope_theta=theta)
    positions = np.concatenate([np.arange(300), np.arange(8000, 8192)]).astype(np.int32)
    given = jax.jit(lambda positions: rotation(positions, config.head_dim, config.rope_of(0)))(
        jnp.asarray(positions[None])
    )
    angles = positions.astype(np.float32)[:, None] * theirs(config.head_dim, config.rope_theta)
    for ours, function in zip(given, (np.cos, np.sin), strict=True):
        # 6e-8 is what float32 can say of values up to one. Angles with other last bits would be off
        # by up to 5e-4.
        np.testing.assert_allclose(ours[0], function(angles.astype(np.float64)), rtol=0, atol=6e-8)
