"""The two kinds of file in an autoencoder's folder: settings in JSON, weights in safetensors.

We read weights only from safetensors, because reading a pickle of torch runs code in it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from layertap.errors import UsageError


def read_settings(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; raises UsageError if it cannot be read."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(settings, dict):
        raise UsageError(f"{path}: holds no object")
    return settings


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Return all tensors of a safetensors file, in float32; raises UsageError if it is not one."""
    try:
        return {name: array.astype(np.float32) for name, array in load_file(path).items()}
    except (OSError, SafetensorError, TypeError) as error:
        raise UsageError(f"{path}: cannot be read as safetensors: {error}") from error


def require_shapes(path: Path, weights: Mapping[str, np.ndarray], of_features: tuple[str, ...]) -> None:
    """Refuse weights that do not fit each other; `of_features` have one number a feature."""
    missing = [name for name in ("W_enc", "W_dec", "b_dec", *of_features) if name not in weights]
    if missing:
        raise UsageError(f"{path}: lacks {', '.join(missing)}")
    if weights["W_enc"].ndim != 2:
        raise UsageError(f"{path}: W_enc is {weights['W_enc'].shape}, which is no matrix")
    width, features = weights["W_enc"].shape
    shapes = {"W_dec": (features, width), "b_dec": (width,), **dict.fromkeys(of_features, (features,))}
    wrong = [f"{name} is {weights[name].shape}" for name, shape in shapes.items() if weights[name].shape != shape]
    if wrong:
        raise UsageError(f"{path}: {', '.join(wrong)}, for W_enc of {(width, features)}")
