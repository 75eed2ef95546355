"""Sparse autoencoders in the folders that SAELens saves: `cfg.json`, and weights in safetensors.

Weights come from safetensors alone. To read a pickle of torch runs what is in it, so files such as
dictionary_learning's `ae.pt` are refused. What an autoencoder needs and its folder does not hold (a
scale that was not folded in) is refused too: its features would be other ones, without a word.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from layertap.core.hooks import tap_of_hook
from layertap.core.taps import Tap
from layertap.errors import UsageError
from layertap.sae.autoencoder import Autoencoder, Kind, Normalised

_CONFIG, _WEIGHTS = "cfg.json", "sae_weights.safetensors"
_NEEDED: Mapping[str, tuple[str, ...]] = {
    "standard": ("b_enc",),
    "topk": ("b_enc",),
    "jumprelu": ("b_enc", "threshold"),
    "gated": ("b_gate", "b_mag", "r_mag"),
}


def load_autoencoder(folder: Path) -> Autoencoder:
    """The autoencoder in a folder of SAELens; raises UsageError where it cannot be read."""
    config = _read_config(folder)
    kind, normalised = _kind(folder, config), config.get("normalize_activations", "none")
    if normalised not in get_args(Normalised):
        raise UsageError(
            f"{folder}: normalises activations by {normalised!r}, which is not in its weights; fold it into them with"
            " SAELens (fold_activation_norm_scaling_factor) and save it again"
        )
    weights = _read_weights(folder, _NEEDED[kind])
    if kind == "topk" and not isinstance(config.get("k"), int):
        raise UsageError(f"{folder / _CONFIG}: a topk needs k")
    return Autoencoder(
        kind=kind,
        tap=_tap(config),
        weights=weights,
        k=config.get("k", 0) if kind == "topk" else 0,
        normalised=normalised,
        subtracts_b_dec=bool(config.get("apply_b_dec_to_input", True)),
        by_decoder_norm=bool(config.get("rescale_acts_by_decoder_norm", False)),
        metadata=config.get("metadata") or {},
    )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / _CONFIG
    if not path.exists():
        pickled = sorted(file.name for file in folder.glob("*.pt")) if folder.is_dir() else []
        more = f"; {pickled[0]} is a pickle of torch, which would run what is in it" if pickled else ""
        raise UsageError(f"{path}: no such file; give a folder that SAELens' save_model wrote{more}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise UsageError(f"{path}: holds no object")
    return config


def _kind(folder: Path, config: Mapping[str, Any]) -> Kind:
    named = config.get("architecture", "standard")
    if named not in _NEEDED:
        raise UsageError(
            f"{folder}: is a {named!r}; known are {', '.join(_NEEDED)}. SAELens saves a BatchTopK as a jumprelu by"
            " save_inference_model"
        )
    kind: Kind = named
    return kind


def _read_weights(folder: Path, needed: tuple[str, ...]) -> dict[str, np.ndarray]:
    path = folder / _WEIGHTS
    try:
        weights = {name: array.astype(np.float32) for name, array in load_file(path).items()}
    except (OSError, SafetensorError, TypeError) as error:
        raise UsageError(f"{path}: cannot be read as safetensors: {error}") from error
    missing = [name for name in ("W_enc", "W_dec", "b_dec", *needed) if name not in weights]
    if missing:
        raise UsageError(f"{path}: lacks {', '.join(missing)}")
    width, features = weights["W_enc"].shape
    shapes = {"W_dec": (features, width), "b_dec": (width,), **dict.fromkeys(needed, (features,))}
    wrong = [f"{name} is {weights[name].shape}" for name, shape in shapes.items() if weights[name].shape != shape]
    if wrong:
        raise UsageError(f"{path}: {', '.join(wrong)}, for W_enc of {(width, features)}")
    return weights


def _tap(config: Mapping[str, Any]) -> Tap | None:
    """Where it was trained, as its metadata says."""
    metadata = config.get("metadata") or {}
    name = metadata.get("hook_name") or config.get("hook_name")
    return tap_of_hook(name) if isinstance(name, str) else None
