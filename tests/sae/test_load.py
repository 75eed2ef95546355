"""Autoencoders of SAELens: what is read, what features are, and what is refused.

That features are those of SAELens itself is in tests/contract/test_autoencoders.py.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from layertap.core.hooks import hook_name, tap_of_hook
from layertap.core.taps import SITES, Tap
from layertap.errors import UsageError
from layertap.sae.load import load_autoencoder

WIDTH, FEATURES = 6, 20
RNG = np.random.default_rng(0)
X = RNG.normal(size=(50, WIDTH)).astype(np.float32) * 3


def weights(kind: str) -> dict[str, np.ndarray]:
    own = {"gated": ("b_gate", "b_mag", "r_mag"), "jumprelu": ("b_enc", "threshold")}.get(kind, ("b_enc",))
    rng = np.random.default_rng(1)
    shapes = {"W_enc": (WIDTH, FEATURES), "W_dec": (FEATURES, WIDTH), "b_dec": (WIDTH,)}
    shapes |= dict.fromkeys(own, (FEATURES,))
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def save(folder: Path, kind: str, tensors: dict[str, np.ndarray] | None = None, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    told = {"architecture": kind, "normalize_activations": "none", "apply_b_dec_to_input": True} | config
    (folder / "cfg.json").write_text(json.dumps(told))
    save_file(weights(kind) if tensors is None else tensors, folder / "sae_weights.safetensors")
    return folder


def test_each_kind_follows_its_formula(tmp_path: Path) -> None:
    for kind in ("standard", "topk", "jumprelu", "gated"):
        w = weights(kind)
        found = load_autoencoder(save(tmp_path / kind, kind, k=4)).encode(X)
        x = (X - w["b_dec"]).astype(np.float64)
        before = x @ w["W_enc"] + w.get("b_enc", np.zeros(FEATURES))
        expected = np.maximum(before, 0)
        if kind == "topk":
            order = np.sort(expected, axis=1)
            expected = np.where(expected >= order[:, -4:-3], expected, 0)
        if kind == "jumprelu":
            expected = np.where(before > w["threshold"], expected, 0)
        if kind == "gated":
            sizes = np.maximum(x @ (w["W_enc"] * np.exp(w["r_mag"])) + w["b_mag"], 0)
            expected = np.where(x @ w["W_enc"] + w["b_gate"] > 0, sizes, 0)
        assert (expected > 0).any()
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4, err_msg=kind)


def test_what_comes_before_and_after_is_done(tmp_path: Path) -> None:
    plain = load_autoencoder(save(tmp_path / "plain", "standard", apply_b_dec_to_input=False))
    assert not plain.subtracts_b_dec
    w = weights("standard")
    np.testing.assert_allclose(plain.encode(X), np.maximum(X @ w["W_enc"] + w["b_enc"], 0), rtol=1e-4, atol=1e-4)
    scaled = load_autoencoder(save(tmp_path / "scaled", "standard", rescale_acts_by_decoder_norm=True))
    lengths = np.linalg.norm(w["W_dec"], axis=1)
    usual = load_autoencoder(save(tmp_path / "usual", "standard")).encode(X)
    np.testing.assert_allclose(scaled.encode(X), usual * lengths, rtol=1e-4, atol=1e-4)
    sized = load_autoencoder(save(tmp_path / "sized", "standard", normalize_activations="constant_norm_rescale"))
    np.testing.assert_allclose(sized.encode(X * 7), sized.encode(X), rtol=1e-4, atol=1e-4)


def test_features_do_not_depend_on_the_dtype_that_holds_a_number(tmp_path: Path) -> None:
    autoencoder = load_autoencoder(save(tmp_path / "sae", "standard"))
    np.testing.assert_array_equal(autoencoder.encode(X), autoencoder.encode(X.astype(np.float64)))


@pytest.mark.parametrize("site", SITES)
def test_hooks_are_taps_and_back(site: Any) -> None:
    assert tap_of_hook(hook_name(Tap(12, site))) == Tap(12, site)


@pytest.mark.parametrize(
    ("name", "tap"),
    [
        ("model.layers.3", Tap(3, "residual")),
        ("layers.3.mlp", Tap(3, "mlp")),
        ("model.layers.3.self_attn", Tap(3, "attn")),
        ("model.layers.3.mlp.down_proj", None),
        ("blocks.3.hook_unknown", None),
        ("hook_embed", None),
    ],
)
def test_modules_are_taps(name: str, tap: Tap | None) -> None:
    assert tap_of_hook(name) == tap


def test_its_tap_is_in_its_metadata(tmp_path: Path) -> None:
    folder = save(tmp_path / "sae", "standard", metadata={"hook_name": "blocks.5.hook_mlp_out"})
    assert load_autoencoder(folder).tap == Tap(5, "mlp")
    assert load_autoencoder(save(tmp_path / "other", "standard")).tap is None


def test_what_cannot_be_read_rightly_is_refused(tmp_path: Path) -> None:
    def refused(folder: Path, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            load_autoencoder(folder)

    refused(tmp_path / "absent", "no such file; give a folder that SAELens")
    (tmp_path / "pickle").mkdir()
    (tmp_path / "pickle" / "ae.pt").write_bytes(b"")
    refused(tmp_path / "pickle", r"ae\.pt is a pickle of torch")
    refused(save(tmp_path / "transformer", "transformer"), "is a 'transformer'; known are standard, topk")
    scale = save(tmp_path / "scale", "standard", normalize_activations="expected_average_only_in")
    refused(scale, "fold it into them")
    refused(save(tmp_path / "k", "topk"), "a topk needs k")
    lacks = {name: array for name, array in weights("jumprelu").items() if name != "threshold"}
    refused(save(tmp_path / "lacks", "jumprelu", lacks), "lacks threshold")
    refused(save(tmp_path / "shape", "standard", weights("standard") | {"b_enc": X[0]}), r"b_enc is \(6,\)")
    broken = save(tmp_path / "broken", "standard")
    (broken / "sae_weights.safetensors").write_bytes(b"no")
    refused(broken, "cannot be read as safetensors")


def save_dictionary(folder: Path, dict_class: str, tensors: dict[str, np.ndarray], **trainer: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"trainer": {"dict_class": dict_class} | trainer}))
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, folder / "ae.safetensors")
    return folder


def linear(w: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The names and shapes of dictionary_learning, with modules of torch."""
    return {
        "encoder.weight": w["W_enc"].T,
        "encoder.bias": w["b_enc"],
        "decoder.weight": w["W_dec"].T,
        "b_dec": w["b_dec"],
        "threshold": np.array(0.7, np.float32),
    }


def test_folders_of_dictionary_learning_are_read(tmp_path: Path) -> None:
    """That features are those of the package itself is in tests/contract."""
    w = weights("standard")
    before = (X - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    batch = load_autoencoder(save_dictionary(tmp_path / "batch", "BatchTopKSAE", linear(w), k=4))
    expected = np.where(before > np.float32(0.7), before, 0)
    np.testing.assert_allclose(batch.encode(X), expected, rtol=1e-4, atol=1e-4)
    topk = load_autoencoder(save_dictionary(tmp_path / "topk", "AutoEncoderTopK", linear(w), k=4))
    assert (topk.encode(X) > 0).sum(axis=1).max() == 4


@pytest.mark.parametrize(
    ("submodule", "tap"),
    [("resid_post_layer_7", Tap(7, "residual")), ("model.layers.7.mlp", Tap(7, "mlp")), ("own", None), (None, None)],
)
def test_the_tap_of_dictionary_learning_is_read_where_it_is_known(
    submodule: str | None, tap: Tap | None, tmp_path: Path
) -> None:
    tensors = linear(weights("standard"))
    folder = save_dictionary(tmp_path / "sae", "AutoEncoderTopK", tensors, k=4, layer=7, submodule_name=submodule)
    assert load_autoencoder(folder).tap == tap


def test_what_of_dictionary_learning_cannot_be_read_rightly_is_refused(tmp_path: Path) -> None:
    def refused(folder: Path, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            load_autoencoder(folder)

    tensors = linear(weights("standard"))
    refused(save_dictionary(tmp_path / "class", "CrossCoder", tensors), "is 'CrossCoder'; known are AutoEncoder")
    refused(save_dictionary(tmp_path / "k", "AutoEncoderTopK", tensors), "a topk needs k")
    refused(save_dictionary(tmp_path / "lacks", "GatedAutoEncoder", tensors), "lacks decoder_bias, gate_bias")
    wrong = tensors | {"encoder.bias": X[0]}
    refused(save_dictionary(tmp_path / "shape", "AutoEncoderTopK", wrong, k=4), r"b_enc is \(6,\)")
    pickled = save_dictionary(tmp_path / "pickle", "AutoEncoderTopK", tensors, k=4)
    (pickled / "ae.safetensors").rename(pickled / "ae.pt")
    refused(pickled, "pickle of torch(.|\n)*import torch; from safetensors.torch import save_file\nsave_file")
    (pickled / "config.json").write_text("[]")
    refused(pickled, "holds no object")
