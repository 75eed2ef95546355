"""The encoder of a sparse autoencoder, of the kinds that SAELens saves.

    standard    relu(x W + b)
    topk        the same, but only the k largest of a token stay
    jumprelu    the same, where it is above the feature's threshold; BatchTopK is saved as this
    gated       relu(x (W exp(r)) + b_mag), where x W + b_gate is above zero

x is the activation, normalised as the autoencoder needs it. The decoder's bias is subtracted if
training subtracted it from inputs. Arithmetic is in float32, as in training. The order of sums
differs, so values equal those of SAELens except for the last bits.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float32

from layertap.core.taps import Tap

Kind = Literal["standard", "topk", "jumprelu", "gated"]
Normalised = Literal["none", "constant_norm_rescale", "layer_norm"]

_EPSILON = 1e-5
_ZERO = np.float32(0)


@dataclass(frozen=True, eq=False)
class Autoencoder:
    """An encoder. It maps activations of one tap to features."""

    kind: Kind
    tap: Tap | None
    """Where it was trained; None if its folder does not say."""
    weights: Mapping[str, Float32[np.ndarray, "..."]]
    """As SAELens names them: W_enc [width, features], b_enc, W_dec, b_dec, ..."""
    k: int = 0
    """For topk: how many features a token has."""
    normalised: Normalised = "none"
    subtracts_b_dec: bool = True
    by_decoder_norm: bool = False
    """Whether features are scaled by the length of their row of the decoder."""
    metadata: Mapping[str, object] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """Return the number of values in an activation."""
        return int(self.weights["W_enc"].shape[0])

    @property
    def features(self) -> int:
        """Return the number of features."""
        return int(self.weights["W_enc"].shape[1])

    def encode(self, activations: np.ndarray) -> Float32[np.ndarray, "tokens features"]:
        """Return the features of activations; float32 [tokens, features] for [tokens, width]."""
        features: np.ndarray = encode_with(_NUMPY, self, self.weights, activations.astype(np.float32))
        return features


class Arithmetic(NamedTuple):
    """What an encoder is computed with: numpy here, JAX in encoder.py."""

    library: Any
    """numpy, or what has its names."""
    product: Callable[[Any, Any], Any]
    keep_largest: Callable[[Any, int], Any]
    """Keeps the k largest of each row, with zeros in place of the others."""


def encode_with(arithmetic: Arithmetic, autoencoder: Autoencoder, weights: Mapping[str, Any], x: Any) -> Any:  # noqa: ANN401
    """Return the features of float32 activations [tokens, width], as arrays of that library."""
    library, product, keep_largest = arithmetic
    x = _normalise(library, x, autoencoder.normalised)
    if autoencoder.subtracts_b_dec:
        x = x - weights["b_dec"][None]
    before = product(x, weights["W_enc"])
    if autoencoder.kind == "gated":
        opened = before + weights["b_gate"][None] > 0
        sizes = product(x, weights["W_enc"] * library.exp(weights["r_mag"])[None]) + weights["b_mag"][None]
        return library.where(opened, library.maximum(sizes, 0), _ZERO)
    before = before + weights["b_enc"][None]
    if autoencoder.by_decoder_norm:
        before = before * library.linalg.norm(weights["W_dec"], axis=1)[None]
    found = library.maximum(before, 0)
    if autoencoder.kind == "topk":
        return keep_largest(found, min(autoencoder.k, autoencoder.features))
    if autoencoder.kind == "jumprelu":
        return library.where(before > weights["threshold"][None], found, _ZERO)
    return found


def _normalise(library: Any, x: Any, how: Normalised) -> Any:  # noqa: ANN401 - numpy or JAX, and its arrays
    if how == "constant_norm_rescale":
        return x * (np.float32(x.shape[-1] ** 0.5) / library.linalg.norm(x, axis=-1, keepdims=True))
    if how == "layer_norm":
        centred = x - x.mean(axis=-1, keepdims=True)
        return centred / (centred.std(axis=-1, keepdims=True, ddof=1) + np.float32(_EPSILON))
    return x


def _keep_largest(features: np.ndarray, k: int) -> np.ndarray:
    kept = np.zeros_like(features)
    places = np.argpartition(-features, min(k, features.shape[1] - 1), axis=1)[:, :k]
    np.put_along_axis(kept, places, np.take_along_axis(features, places, axis=1), axis=1)
    return kept


_NUMPY = Arithmetic(np, np.matmul, _keep_largest)
