"""An autoencoder's encoder in JAX, and what a step of tokens shows of its features.

The formula is that of `autoencoder.py`, in float32 at the highest precision of the device. By
default, a GPU or a TPU rounds the products of floats to fewer bits, which could decide whether a
feature near its threshold fires. The counts of a step are products of zeros and ones. They are
exact in float32 up to 2^24 tokens, and every step has fewer.

A program is compiled for each number of rows. Steps are padded to a few sizes. Padded rows do not
count: their `weights` are zero.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from layertap.sae.autoencoder import Arithmetic, Autoencoder, encode_with

_SUMMED = 64
"""Rows whose float32 values are added one after the other."""


class StepFound(NamedTuple):
    """The results of one step, on the device."""

    features: jax.Array
    """float32 [tokens, features]; zero in padded rows."""
    sums: jax.Array
    """float32 [features]"""
    active: jax.Array
    """float32 [labels, features]: at how many tokens with each label each fires; whole numbers."""


def make_step(
    autoencoder: Autoencoder, groups: Sequence[int]
) -> Callable[[np.ndarray, np.ndarray, np.ndarray], StepFound]:
    """Return the function that counts a step. It takes activations [tokens, width], answers int8
    [groups, tokens], and weights float32 [tokens], which are one, or zero for padding. The number
    of tokens is a multiple of 64.

    `groups` says how many answers each group has. The labels are all of these side by side,
    followed by one that every token has.
    """
    weights = {name: jnp.asarray(array) for name, array in autoencoder.weights.items()}
    encode = partial(encode_with, _JAX, autoencoder)

    @jax.jit
    def step(
        weights: Mapping[str, jax.Array], activations: jax.Array, answers: jax.Array, real: jax.Array
    ) -> StepFound:
        features = jnp.where(real[:, None] > 0, encode(weights, activations.astype(jnp.float32)), 0.0)
        sums = features.reshape(-1, _SUMMED, features.shape[1]).sum(axis=1).sum(axis=0)
        asked = (jax.nn.one_hot(own, count, axis=0) for own, count in zip(answers, groups, strict=True))
        labels = jnp.concatenate([*asked, jnp.ones((1, len(real)))]) * real[None, :]
        return StepFound(features, sums, _product(labels, (features > 0).astype(jnp.float32)))

    return lambda activations, answers, real: step(weights, activations, answers, real)


def make_encoder(autoencoder: Autoencoder) -> Callable[[np.ndarray], jax.Array]:
    """Return the encoder alone: float32 [tokens, features] for [tokens, width]."""
    weights = {name: jnp.asarray(array) for name, array in autoencoder.weights.items()}

    @jax.jit
    def encode(weights: Mapping[str, jax.Array], activations: jax.Array) -> jax.Array:
        return cast(jax.Array, encode_with(_JAX, autoencoder, weights, activations.astype(jnp.float32)))

    return lambda activations: encode(weights, activations)


def _keep_largest(features: jax.Array, k: int) -> jax.Array:
    values, places = lax.top_k(features, k)
    return jnp.put_along_axis(jnp.zeros_like(features), places, values, axis=1, inplace=False)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


_JAX = Arithmetic(jnp, _product, _keep_largest)
