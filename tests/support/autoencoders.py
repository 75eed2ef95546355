"""Small autoencoders with random weights, for the tiny model's activations."""

from typing import Any

import numpy as np

from layertap.core.taps import Tap
from layertap.sae.autoencoder import Autoencoder

TAP = Tap(3, "residual")
WIDTH, FEATURES = 64, 40


def make_autoencoder(kind: str = "standard", **settings: Any) -> Autoencoder:
    rng = np.random.default_rng(1)
    shapes = {"W_enc": (WIDTH, FEATURES), "W_dec": (FEATURES, WIDTH), "b_dec": (WIDTH,)}
    shapes |= dict.fromkeys(("b_enc", "threshold", "b_gate", "b_mag", "r_mag"), (FEATURES,))
    weights = {name: rng.normal(size=shape).astype(np.float32) * 0.3 for name, shape in shapes.items()}
    weights["b_enc"] -= 1.0
    return Autoencoder(kind=kind, tap=TAP, weights=weights, **settings)  # type: ignore[arg-type]
