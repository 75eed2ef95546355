"""Small autoencoders with random weights, for the tiny model's activations."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from layertap.core.taps import Tap
from layertap.sae.autoencoder import Autoencoder

TAP = Tap(3, "residual")
WIDTH, FEATURES = 64, 40
WEIGHTS = "sae_weights.safetensors"


def make_autoencoder(kind: str = "standard", **settings: Any) -> Autoencoder:
    rng = np.random.default_rng(1)
    shapes = {"W_enc": (WIDTH, FEATURES), "W_dec": (FEATURES, WIDTH), "b_dec": (WIDTH,)}
    shapes |= dict.fromkeys(("b_enc", "threshold", "b_gate", "b_mag", "r_mag"), (FEATURES,))
    weights = {name: rng.normal(size=shape).astype(np.float32) * 0.3 for name, shape in shapes.items()}
    weights["b_enc"] -= 1.0
    return Autoencoder(kind=kind, tap=TAP, weights=weights, **settings)  # type: ignore[arg-type]


def write_autoencoder(folder: Path, width: int = 64, features: int = 96, hook: str | None = None) -> Path:
    """Write a random TopK autoencoder, as SAELens saves it."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(features)
    shapes = {"W_enc": (width, features), "W_dec": (features, width), "b_enc": (features,), "b_dec": (width,)}
    save_file({name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}, folder / WEIGHTS)
    metadata = {} if hook is None else {"hook_name": hook}
    (folder / "cfg.json").write_text(json.dumps({"architecture": "topk", "k": 8, "metadata": metadata}))
    return folder
