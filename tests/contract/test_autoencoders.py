"""The features that Layertap reads out of an autoencoder are those of SAELens itself."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
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
