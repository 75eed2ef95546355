"""Sparse autoencoders in the folders that trainers save.

SAELens saves `cfg.json` and `sae_weights.safetensors`, dictionary_learning saves `config.json` and
its weights (dictionary_learning.py). We read weights only from safetensors. Reading a pickle of
torch runs code in it, so we refuse files such as `ae.pt`. We also refuse an autoencoder that needs
something its folder does not hold (a scale that was not folded in), because its features would be
silently wrong.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from layertap.core.hooks import tap_of_hook
from layertap.core.taps import Tap
from layertap.errors import UsageError
from layertap.sae import dictionary_learning
from layertap.sae.autoencoder import Autoencoder, Kind, Normalised
from layertap.sae.files import read_settings, read_tensors, require_shapes

_CONFIG, _WEIGHTS = "cfg.json", "sae_weights.safetensors"
_OF_FEATURES: Mapping[str, tuple[str, ...]] = {
    "standard": ("b_enc",),
    "topk": ("b_enc",),
    "jumprelu": ("b_enc", "threshold"),
    "gated": ("b_gate", "b_mag", "r_mag"),
}
"""The weights of each kind that have one number for each feature."""


def load_autoencoder(folder: Path) -> Autoencoder:
    """Load the autoencoder in a folder of SAELens or of dictionary_learning.

    Raises UsageError if it cannot be read.
    """
    if not (folder / _CONFIG).exists() and (folder / dictionary_learning.CONFIG).exists():
        return dictionary_learning.load_dictionary(folder, _OF_FEATURES)
    config = _read_config(folder)
    kind, normalised = _kind(folder, config), config.get("normalize_activations", "none")
    if normalised not in get_args(Normalised):
        raise UsageError(
            f"{folder}: normalises activations by {normalised!r}, which is not in its weights; fold it into them with"
            " SAELens (fold_activation_norm_scaling_factor) and save it again"
        )
    weights = read_tensors(folder / _WEIGHTS)
    require_shapes(folder / _WEIGHTS, weights, _OF_FEATURES[kind])
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
        raise UsageError(
            f"{path}: no such file; give a folder that SAELens' save_model or dictionary_learning wrote{more}"
        )
    return read_settings(path)


def _kind(folder: Path, config: Mapping[str, Any]) -> Kind:
    named = config.get("architecture", "standard")
    if named not in _OF_FEATURES:
        raise UsageError(
            f"{folder}: is a {named!r}; known are {', '.join(_OF_FEATURES)}. SAELens saves a BatchTopK as a jumprelu by"
            " save_inference_model"
        )
    kind: Kind = named
    return kind


def _tap(config: Mapping[str, Any]) -> Tap | None:
    """Return where it was trained, from its metadata."""
    metadata = config.get("metadata") or {}
    name = metadata.get("hook_name") or config.get("hook_name")
    return tap_of_hook(name) if isinstance(name, str) else None
