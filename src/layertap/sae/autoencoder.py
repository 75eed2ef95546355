"""The encoder of a sparse autoencoder, of the kinds that SAELens saves.

    standard    relu(x W + b)
    topk        the same, but only the k largest of a token stay
    jumprelu    the same, where it is above the feature's threshold; BatchTopK is saved as this
    gated       relu(x (W exp(r)) + b_mag), where x W + b_gate is above zero

x is the activation, normalised as the autoencoder needs it. The decoder's bias is subtracted if
training subtracted it from inputs. Arithmetic is in float32, as in training. The order of sums
differs, so values equal those of SAELens except for the last bits.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Float32

from layertap.core.taps import Tap

Kind = Literal["standard", "topk", "jumprelu", "gated"]
Normalised = Literal["none", "constant_norm_rescale", "layer_norm"]

EPSILON = 1e-5


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
        x = _normalise(activations.astype(np.float32), self.normalised)
        if self.subtracts_b_dec:
            x = x - self.weights["b_dec"]
        if self.kind == "gated":
            opened = x @ self.weights["W_enc"] + self.weights["b_gate"] > 0
            sizes = x @ (self.weights["W_enc"] * np.exp(self.weights["r_mag"])) + self.weights["b_mag"]
            return np.where(opened, np.maximum(sizes, 0), np.float32(0))
        before = x @ self.weights["W_enc"] + self.weights["b_enc"]
        if self.by_decoder_norm:
            before = before * np.linalg.norm(self.weights["W_dec"], axis=1)
        found = np.maximum(before, 0)
        if self.kind == "topk":
            return _keep_largest(found, self.k)
        return np.where(before > self.weights["threshold"], found, np.float32(0)) if self.kind == "jumprelu" else found


def _normalise(x: np.ndarray, how: Normalised) -> np.ndarray:
    if how == "constant_norm_rescale":
        return x * (np.float32(x.shape[-1] ** 0.5) / np.linalg.norm(x, axis=-1, keepdims=True))
    if how == "layer_norm":
        centred = x - x.mean(axis=-1, keepdims=True)
        return centred / (centred.std(axis=-1, keepdims=True, ddof=1) + np.float32(EPSILON))
    return x


def _keep_largest(features: np.ndarray, k: int) -> np.ndarray:
    """Return the k largest of each row, with zeros in place of the others."""
    kept = np.zeros_like(features)
    places = np.argpartition(-features, min(k, features.shape[1] - 1), axis=1)[:, :k]
    np.put_along_axis(kept, places, np.take_along_axis(features, places, axis=1), axis=1)
    return kept
