"""Autoencoders in the folders that dictionary_learning saves: `config.json`, and `ae.safetensors`.

It saves weights as `ae.pt`, a pickle of torch, so you have to convert them once, with `CONVERSION`.
The features equal `encode(x)` of what its `load_dictionary` returns:

    AutoEncoder             standard; features are scaled by the length of their row of the decoder,
                            which its loader folds into the encoder
    AutoEncoderNew          standard; the decoder's bias is not subtracted
    GatedAutoEncoder        gated
    AutoEncoderTopK         topk
    BatchTopKSAE            jumprelu with one threshold for all features
    MatryoshkaBatchTopKSAE  the same, with all groups active
    JumpReluAutoEncoder     jumprelu; the decoder's bias is not subtracted
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from layertap.core.hooks import tap_of_hook
from layertap.core.taps import Tap
from layertap.errors import UsageError
from layertap.sae.autoencoder import Autoencoder, Kind
from layertap.sae.files import read_settings, read_tensors, require_shapes

CONFIG, WEIGHTS = "config.json", "ae.safetensors"
CONVERSION = """import torch; from safetensors.torch import save_file
save_file({n: w.contiguous() for n, w in torch.load("ae.pt", "cpu", weights_only=True).items()}, "ae.safetensors")"""
_LINEAR = {"W_enc": "encoder.weight", "W_dec": "decoder.weight"}
"""Modules of torch, whose weights are transposed."""
_SUBMODULE = re.compile(r"resid_post_layer_(\d{1,4})", re.ASCII)
"""The name of the residual stream in dictionary_learning's own scripts."""


@dataclass(frozen=True)
class _Class:
    """How one of its classes maps to one of our kinds."""

    kind: Kind
    names: Mapping[str, str] = field(default_factory=dict)
    """Our names and theirs, where they differ."""
    subtracts_b_dec: bool = True
    by_decoder_norm: bool = False


_BIASES = {"b_enc": "encoder.bias"}
_CLASSES = {
    "AutoEncoder": _Class("standard", {**_LINEAR, **_BIASES, "b_dec": "bias"}, by_decoder_norm=True),
    "AutoEncoderNew": _Class("standard", {**_LINEAR, **_BIASES, "b_dec": "decoder.bias"}, subtracts_b_dec=False),
    "GatedAutoEncoder": _Class(
        "gated", {**_LINEAR, "b_dec": "decoder_bias", "b_gate": "gate_bias", "b_mag": "mag_bias"}
    ),
    "AutoEncoderTopK": _Class("topk", {**_LINEAR, **_BIASES}),
    "BatchTopKSAE": _Class("jumprelu", {**_LINEAR, **_BIASES}),
    "MatryoshkaBatchTopKSAE": _Class("jumprelu"),
    "JumpReluAutoEncoder": _Class("jumprelu", subtracts_b_dec=False),
}


def load_dictionary(folder: Path, of_features: Mapping[str, tuple[str, ...]]) -> Autoencoder:
    """Load the autoencoder in a folder of dictionary_learning; raises UsageError if it cannot.

    `of_features` names the weights of each kind that have one number for each feature.
    """
    trainer = read_settings(folder / CONFIG).get("trainer")
    trainer = trainer if isinstance(trainer, dict) else {}
    made = _CLASSES.get(trainer.get("dict_class", ""))
    if made is None:
        raise UsageError(
            f"{folder / CONFIG}: its trainer's dict_class is {trainer.get('dict_class')!r}; known are"
            f" {', '.join(_CLASSES)}"
        )
    k = trainer.get("k")
    if made.kind == "topk" and not (isinstance(k, int) and k > 0):
        raise UsageError(f"{folder / CONFIG}: a topk needs k")
    return Autoencoder(
        kind=made.kind,
        tap=_tap(trainer),
        weights=_weights(folder / WEIGHTS, made, of_features[made.kind]),
        k=k if isinstance(k, int) and made.kind == "topk" else 0,
        subtracts_b_dec=made.subtracts_b_dec,
        by_decoder_norm=made.by_decoder_norm,
        metadata=trainer,
    )


def _weights(path: Path, made: _Class, of_features: tuple[str, ...]) -> dict[str, np.ndarray]:
    if not path.exists():
        raise UsageError(
            f"{path}: no such file. dictionary_learning saves a pickle of torch, which would run what is in it; where"
            f" you trust it, convert it there, once, with torch:\n{CONVERSION}"
        )
    theirs = read_tensors(path)
    wanted = {name: made.names.get(name, name) for name in ("W_enc", "W_dec", "b_dec", *of_features)}
    missing = [own for own in wanted.values() if own not in theirs]
    if missing:
        raise UsageError(f"{path}: lacks {', '.join(missing)}")
    weights = {name: np.ascontiguousarray(_turned(name, theirs[own], made)) for name, own in wanted.items()}
    if "threshold" in weights and weights["threshold"].size == 1 and weights["W_enc"].ndim == 2:
        weights["threshold"] = np.full(weights["W_enc"].shape[1], weights["threshold"].reshape(-1)[0])
    require_shapes(path, weights, of_features)
    return weights


def _turned(name: str, array: np.ndarray, made: _Class) -> np.ndarray:
    return array.T if made.names.get(name) == _LINEAR.get(name, "") else array


def _tap(trainer: Mapping[str, Any]) -> Tap | None:
    """Return where it was trained, if we know the module's name."""
    name = trainer.get("submodule_name")
    if not isinstance(name, str):
        return None
    match = _SUBMODULE.fullmatch(name)
    return Tap(int(match[1]), "residual") if match else tap_of_hook(name)
