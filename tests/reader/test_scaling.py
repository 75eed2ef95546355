"""The affine maps: how they change activations, and how they are folded into weights exactly."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from layertap.core.taps import Tap
from layertap.errors import UsageError
from layertap.reader.scaling import AffineMap, Normalisation, fold, same_summary
from layertap.shards.statistics import TapStatistics, measure

ONE, OTHER = Tap(12, "mlp_in"), Tap(12, "mlp")

sizes = st.tuples(st.integers(1, 9), st.integers(1, 12), st.integers(1, 9))


def a_map(rng: np.random.Generator, width: int) -> AffineMap:
    return AffineMap(rng.normal(0, 100, width), float(10 ** rng.uniform(-3, 3)))


@given(sizes, st.integers(0, 2**32), st.booleans(), st.booleans())
def test_folded_weights_do_to_activations_what_the_others_did_to_normalised_ones(
    shape: tuple[int, int, int], seed: int, transcodes: bool, subtracts: bool
) -> None:
    rng, (width, features, other) = np.random.default_rng(seed), shape
    inputs = a_map(rng, width)
    targets = a_map(rng, other) if transcodes else inputs
    out = len(targets.mean)
    W_enc, b_enc = rng.normal(size=(width, features)), rng.normal(size=features)
    W_dec, b_dec = rng.normal(size=(features, out)), rng.normal(size=out)
    subtracts = subtracts and not transcodes
    x = rng.normal(0, 1 / inputs.factor, (5, width)) + inputs.mean

    def run(x: np.ndarray, w: np.ndarray, b: np.ndarray, v: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        before = (x - c if subtracts else x) @ w + b
        return before, np.maximum(before, 0) @ v + c

    before, predicted = run(inputs.apply(x), W_enc, b_enc, W_dec, b_dec)
    folded = fold(W_enc, b_enc, W_dec, b_dec, inputs, targets if transcodes else None, subtracts_b_dec=subtracts)
    now, given_back = run(x, *folded)
    size = np.abs(x).max() * np.abs(folded.W_enc).max() * width + np.abs(before).max()
    np.testing.assert_allclose(now, before, rtol=0, atol=1e-12 * size)
    np.testing.assert_allclose(targets.apply(given_back), predicted, rtol=0, atol=1e-10 * (size + 1))


def test_a_crosscoder_is_folded_tap_by_tap() -> None:
    rng = np.random.default_rng(0)
    maps = [a_map(rng, 4) for _ in range(3)]
    x, weight, bias = rng.normal(size=(7, 3, 4)), rng.normal(size=(3, 4, 6)), rng.normal(size=6)
    normalised = np.stack([own.apply(x[:, place]) for place, own in enumerate(maps)], axis=1)
    before = np.einsum("btw,twf->bf", normalised, weight) + bias
    folded = np.empty_like(weight)
    for place, own in enumerate(maps):
        folded[place], bias = own.fold_encoder(weight[place], bias)
    np.testing.assert_allclose(np.einsum("btw,twf->bf", x, folded) + bias, before, rtol=1e-9)


def test_a_trained_autoencoder_in_torch_works_on_raw_activations_once_folded() -> None:
    rng = np.random.default_rng(1)
    own = AffineMap(rng.normal(0, 5, 8), 0.2)
    encoder, decoder = torch.nn.Linear(8, 32), torch.nn.Linear(32, 8)
    x = torch.from_numpy(rng.normal(0, 5, (100, 8)) + own.mean).float()
    expected = own.undo(decoder(torch.relu(encoder(own.apply(x)))))
    folded = fold(encoder.weight.T, encoder.bias, decoder.weight.T, decoder.bias, own)
    with torch.no_grad():
        for layer, weight, bias in ((encoder, folded.W_enc, folded.b_enc), (decoder, folded.W_dec, folded.b_dec)):
            layer.weight.copy_(torch.from_numpy(weight.T))
            layer.bias.copy_(torch.from_numpy(bias))
    torch.testing.assert_close(decoder(torch.relu(encoder(x))), expected, rtol=1e-4, atol=1e-3)


def test_weights_of_another_width_are_refused() -> None:
    own, other = AffineMap(np.zeros(4), 1.0), AffineMap(np.zeros(3), 1.0)
    weights = np.zeros((4, 6)), np.zeros(6), np.zeros((6, 4)), np.zeros(4)
    with pytest.raises(UsageError, match=r"shapes \[\(4, 6\).* not \[\(3, 6\)"):
        fold(*weights, other)
    with pytest.raises(UsageError, match="cannot be subtracted from inputs of another tap"):
        fold(*weights, own, own.__class__(np.zeros(4), 2.0), subtracts_b_dec=True)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_arrays_of_all_three_frameworks_are_mapped_alike(dtype: str) -> None:
    rng = np.random.default_rng(2)
    own = AffineMap(rng.normal(0, 5, 8), 0.25)
    x = torch.from_numpy(rng.normal(0, 5, (3, 8))).to(getattr(torch, dtype))
    wide = torch.float64 if dtype == "float64" else torch.float32
    expected = (x.double() - torch.from_numpy(own.mean)) * own.factor
    mapped = own.apply(x)
    assert mapped.dtype == wide
    torch.testing.assert_close(mapped.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(own.undo(mapped), x.to(wide), rtol=1e-5, atol=1e-5)
    if dtype != "float64":
        other = own.apply(jnp.asarray(x.float().numpy(), dtype))
        assert other.dtype == jnp.float32
        np.testing.assert_allclose(np.asarray(other), expected.numpy(), rtol=1e-6, atol=1e-6)
    if dtype != "bfloat16":
        np.testing.assert_allclose(own.apply(x.numpy()), expected.numpy(), rtol=1e-6, atol=1e-6)


def statistics(values: np.ndarray) -> TapStatistics:
    return measure(values, 0)[0]


@given(st.integers(2, 300), st.integers(1, 9), st.booleans(), st.integers(0, 2**32))
def test_unit_rms_gives_every_channel_a_mean_square_of_one(count: int, width: int, center: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(rng.normal(0, 30, width), 10 ** rng.uniform(-2, 2, width), (count, width))
    made = Normalisation.of({ONE: statistics(values)}, center, "unit_rms", "these")
    mapped = made[ONE].apply(values)
    assert np.isclose((mapped * mapped).mean(), 1)
    assert not center or np.allclose(mapped.mean(axis=0), 0, atol=1e-9)


def test_sqrt_d_is_the_factor_of_saelens() -> None:
    values = np.random.default_rng(3).normal(3, 2, (500, 6))
    made = Normalisation.of({ONE: statistics(values)}, False, "sqrt_d", "these")
    assert np.isclose(np.linalg.norm(made[ONE].apply(values), axis=1).mean(), 6**0.5)
    assert np.isclose(made[ONE].factor, 6**0.5 / np.linalg.norm(values, axis=1).mean())


def test_of_centred_activations_sqrt_d_is_unit_rms() -> None:
    values = np.random.default_rng(3).normal(3, 2, (500, 6))
    factors = [
        Normalisation.of({ONE: statistics(values)}, True, scale, "these")[ONE].factor
        for scale in ("sqrt_d", "unit_rms")
    ]
    assert factors[0] == factors[1]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_is_given_is_not_written_to(dtype: str) -> None:
    values = np.random.default_rng(5).normal(3, 2, (50, 2, 6)).astype(dtype)
    before = values.copy()
    for center in (True, False):
        made = Normalisation.of(
            {tap: statistics(values[:, place]) for place, tap in enumerate((ONE, OTHER))}, center, "unit_rms", "these"
        )
        for array in (values, torch.from_numpy(values)):
            mapped = made.apply(array, [ONE, OTHER])
            for place, tap in enumerate((ONE, OTHER)):
                np.testing.assert_allclose(mapped[:, place], made[tap].apply(values[:, place]), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(values, before)


def test_what_has_no_size_cannot_be_scaled() -> None:
    constant = {ONE: statistics(np.ones((5, 3)))}
    with pytest.raises(UsageError, match=r"layer 12 at mlp_in: its activations have the size 0"):
        Normalisation.of(constant, True, "unit_rms", "these")
    assert Normalisation.of(constant, True, None, "these")[ONE].factor == 1


def test_its_state_is_json_and_gives_it_back_to_the_last_bit() -> None:
    rng = np.random.default_rng(4)
    taps = {ONE: statistics(rng.normal(2, 3, (50, 7))), OTHER: statistics(rng.normal(size=(50, 3)))}
    made = Normalisation.of(taps, True, "unit_rms", "these")
    again = Normalisation.from_state_dict(json.loads(json.dumps(made.state_dict())))
    assert (again.center, again.scale, again.measured) == (True, "unit_rms", "these")
    for tap in taps:
        np.testing.assert_array_equal(again[tap].mean, made[tap].mean)
        assert again[tap].factor == made[tap].factor
    assert same_summary(json.loads(json.dumps(made.summary())), again.summary())
    assert not same_summary(made.summary(), Normalisation.of(taps, False, "unit_rms", "these").summary())
    assert not same_summary(made.summary(), None)


def test_a_damaged_state_is_refused() -> None:
    with pytest.raises(UsageError, match="has version None"):
        Normalisation.from_state_dict({})
    with pytest.raises(UsageError, match="damaged"):
        Normalisation.from_state_dict({"version": 1, "taps": [{"layer": 1}]})


def test_a_tap_that_it_has_no_map_of_is_named() -> None:
    made = Normalisation.of({ONE: statistics(np.eye(3))}, False, None, "these")
    assert made[12, "mlp_in"] is made[ONE]
    with pytest.raises(UsageError, match=r"has no map of \(3, 'attn'\); it has those of mlp_in\.12"):
        made[3, "attn"]
