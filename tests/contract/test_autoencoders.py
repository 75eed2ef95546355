"""Layertap reads the same features from an autoencoder as its own trainer."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dictionary_learning.dictionary import AutoEncoder, AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from sae_lens import (
    GatedSAE,
    GatedSAEConfig,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    StandardSAE,
    StandardSAEConfig,
    TopKSAE,
    TopKSAEConfig,
)

from layertap.core.taps import Tap
from layertap.errors import UsageError
from layertap.sae.dictionary_learning import CONVERSION
from layertap.sae.load import load_autoencoder

KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "standard": (StandardSAE, StandardSAEConfig, {}),
    "not subtracted": (StandardSAE, StandardSAEConfig, {"apply_b_dec_to_input": False}),
    "layer norm": (StandardSAE, StandardSAEConfig, {"normalize_activations": "layer_norm"}),
    "constant norm": (StandardSAE, StandardSAEConfig, {"normalize_activations": "constant_norm_rescale"}),
    "topk": (TopKSAE, TopKSAEConfig, {"k": 7}),
    "topk by decoder": (TopKSAE, TopKSAEConfig, {"k": 7, "rescale_acts_by_decoder_norm": True}),
    "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig, {}),
    "gated": (GatedSAE, GatedSAEConfig, {}),
}


@pytest.mark.parametrize("name", KINDS)
def test_features_are_those_of_saelens(name: str, tmp_path: Path) -> None:
    made, config, settings = KINDS[name]
    torch.manual_seed(3)
    theirs = made(config(d_in=64, d_sae=256, **settings))
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    theirs.save_model(tmp_path / "sae")
    x = torch.randn(200, 64) * 5
    expected = theirs.encode(x).detach().numpy()
    found = load_autoencoder(tmp_path / "sae").encode(x.numpy())
    assert (expected > 0).any()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


DICTIONARIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "AutoEncoder": (AutoEncoder, {}),
    "AutoEncoderNew": (AutoEncoderNew, {}),
    "GatedAutoEncoder": (GatedAutoEncoder, {}),
    "AutoEncoderTopK": (AutoEncoderTopK, {"k": 7}),
    "BatchTopKSAE": (BatchTopKSAE, {"k": 7}),
    "MatryoshkaBatchTopKSAE": (MatryoshkaBatchTopKSAE, {"k": 7}),
    "JumpReluAutoEncoder": (JumpReluAutoEncoder, {}),
}


@pytest.mark.parametrize("name", DICTIONARIES)
def test_features_are_those_of_dictionary_learning(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, settings = DICTIONARIES[name]
    torch.manual_seed(3)
    groups = {"group_sizes": [96, 160]} if name.startswith("Matryoshka") else {}
    theirs = made(64, 256, **settings, **groups)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
        if name.endswith("BatchTopKSAE"):
            theirs.threshold.fill_(2.5)
    folder = tmp_path / "sae"
    folder.mkdir()
    torch.save(theirs.state_dict(), folder / "ae.pt")
    trainer = {"dict_class": name, "layer": 5, "submodule_name": "resid_post_layer_5"} | settings
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"io": "out"}}))

    with pytest.raises(UsageError, match="pickle of torch"):
        load_autoencoder(folder)
    monkeypatch.chdir(folder)
    exec(CONVERSION, {})  # as the message says

    loaded = made.from_pretrained(str(folder / "ae.pt"), **settings)  # as its load_dictionary does
    x = torch.randn(200, 64) * 5
    expected = loaded.encode(x).detach().numpy()
    found = load_autoencoder(folder)
    assert found.tap == Tap(5, "residual")
    assert (expected > 0).any()
    np.testing.assert_allclose(found.encode(x.numpy()), expected, rtol=1e-4, atol=1e-3)
