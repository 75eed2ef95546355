"""SAELens' own autoencoders accept our normalisation, and its scale is our `sqrt_d`."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig, StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig
from sae_lens.training.activation_scaler import ActivationScaler

import layertap
from layertap.reader import Normalisation, fold

WIDTH, FEATURES = 64, 256
SAES = {
    "standard": (StandardSAE, StandardSAEConfig, {}),
    "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig, {}),
    "topk": (TopKSAE, TopKSAEConfig, {"k": 8, "rescale_acts_by_decoder_norm": False}),
    "topk, rescaled": (TopKSAE, TopKSAEConfig, {"k": 8, "rescale_acts_by_decoder_norm": True}),
}


@pytest.fixture
def normalisation(run: Path) -> Normalisation:
    made = layertap.ActivationDataset(run).batches(
        512, layers=[2], exclude={"first", "sink"}, center=True, scale="unit_rms"
    )
    assert made.normalisation is not None
    return made.normalisation


@torch.no_grad()
@pytest.mark.parametrize("subtracts", [True, False])
@pytest.mark.parametrize("kind", SAES)
def test_folded_an_autoencoder_works_on_activations_as_the_model_has_them(
    kind: str, subtracts: bool, held_out: torch.Tensor, normalisation: Normalisation
) -> None:
    made, config, more = SAES[kind]
    own, raw = normalisation[2, "residual"], held_out.double()
    sae = made(config(d_in=WIDTH, d_sae=FEATURES, dtype="float64", apply_b_dec_to_input=subtracts, **more))
    torch.manual_seed(0)
    for parameter in sae.parameters():
        parameter.copy_(torch.randn_like(parameter) / WIDTH**0.5)
    features = sae.encode(own.apply(raw))
    predicted = own.undo(sae.decode(features))
    folded = fold(sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, own, subtracts_b_dec=subtracts)
    for name, values in folded._asdict().items():
        getattr(sae, name).copy_(torch.from_numpy(values))
    now = sae.encode(raw)
    assert torch.equal(now > 0, features > 0)
    assert 0 < (features > 0).double().mean() < 1
    if kind != "topk, rescaled":  # these are multiplied by the length of the decoder's rows
        torch.testing.assert_close(now, features, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(sae.decode(now), predicted, rtol=1e-9, atol=1e-9)


def test_sqrt_d_is_the_scale_that_saelens_finds(run: Path) -> None:
    dataset = layertap.ActivationDataset(run)
    batches = dataset.batches(64, layers=[2], exclude={"first", "sink"}, as_="torch", dtype="float32", drop_last=True)
    ours = dataset.batches(64, layers=[2], exclude={"first", "sink"}, scale="sqrt_d").normalisation

    def provider() -> Iterator[torch.Tensor]:
        for batch in batches:
            yield batch.activations[:, 0]

    scaler = ActivationScaler()
    scaler.estimate_scaling_factor(WIDTH, provider(), len(batches))
    assert ours is not None
    assert ours[2, "residual"].factor == pytest.approx(scaler.scaling_factor, rel=1e-3)
