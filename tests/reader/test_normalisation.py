"""Batches that come centred and scaled: with what was measured on the selected tokens."""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import outputs
import pytest
import runs

import layertap.reader.measuring
from layertap import ActivationDataset
from layertap.cli import main
from layertap.core.sample import Sample
from layertap.core.taps import Tap
from layertap.errors import UsageError
from layertap.reader.batches import Batches
from layertap.reader.scaling import Normalisation, fold
from layertap.shards.form import ShardFormat

SITES = ("residual", "mlp")
SHAPES = ((7, 30), (12, 2), (40,))
SCALES = ("unit_rms", "sqrt_d")
SOME: dict[str, Any] = {"exclude": {"first", "sink"}}


def sample(index: int, tokens: int) -> Sample:
    """A sample far from zero, with a sink at the beginning that is unlike the rest."""
    plain = outputs.sample(index, tokens, SITES)
    rng = np.random.default_rng(index)
    activations = {}
    for place, tap in enumerate(plain.activations):
        values = rng.normal((5, -3, 0, 20), (1, 2, 0.5, place + 1), (tokens, outputs.HIDDEN))
        values[0] *= -2000
        activations[tap] = values.astype(np.float32)
    return replace(plain, activations=activations)


def shards() -> list[list[Sample]]:
    numbers = iter(range(100))
    return [[sample(next(numbers), tokens) for tokens in shape] for shape in SHAPES]


@pytest.fixture(params=("safetensors", "pickle"))
def dataset(tmp_path: Path, request: pytest.FixtureRequest) -> ActivationDataset:
    """The output of two workers."""
    form = outputs.shard_format(SITES, name=request.param)
    first, *others = shards()
    outputs.write(tmp_path / "tpu_0", [first], form)
    outputs.write(tmp_path / "tpu_1", others, form)
    return ActivationDataset(tmp_path)


def all_rows(batches: Batches) -> np.ndarray:
    """[tokens, taps, width] of an epoch, in float64."""
    return np.concatenate([batch.activations for batch in batches]).astype(np.float64)


@pytest.mark.parametrize("asked", [{}, SOME], ids=["all", "some"])
@pytest.mark.parametrize(
    ("center", "scale"), [(True, None), *((center, scale) for center in (True, False) for scale in SCALES)]
)
def test_what_comes_has_the_mean_and_size_that_were_asked_for(
    dataset: ActivationDataset, center: bool, scale: Any, asked: dict[str, Any]
) -> None:
    batches = dataset.batches(8, center=center, scale=scale, **asked)
    rows = all_rows(batches)
    assert all(batch.activations.dtype == np.float32 for batch in batches)
    if center:
        np.testing.assert_allclose(rows.mean(axis=0), 0, atol=1e-4 * np.abs(rows).max())
    if scale == "unit_rms" or (center and scale == "sqrt_d"):
        np.testing.assert_allclose((rows * rows).mean(axis=(0, 2)), 1, rtol=1e-5)
    elif scale == "sqrt_d":
        np.testing.assert_allclose(np.linalg.norm(rows, axis=2).mean(axis=0), outputs.HIDDEN**0.5, rtol=1e-5)
    else:
        plain = all_rows(dataset.batches(8, **asked))
        np.testing.assert_allclose(rows, plain - plain.mean(axis=0), atol=1e-4 * np.abs(plain).max())


def test_tokens_come_in_the_order_in_which_they_come_unscaled(dataset: ActivationDataset) -> None:
    asked = {"pool_tokens": 24, "piece_tokens": 5, "seed": 3}
    normalised = dataset.batches(8, center=True, scale="unit_rms", **asked)
    made = normalised.normalisation
    assert made is not None
    for plain, batch in zip(dataset.batches(8, **asked), normalised, strict=True):
        assert plain.samples.tolist() == batch.samples.tolist()
        assert plain.positions.tolist() == batch.positions.tolist()
        for place, tap in enumerate(normalised.taps):
            expected = (plain.activations[:, place].astype(np.float64) - made[tap].mean) * made[tap].factor
            np.testing.assert_allclose(batch.activations[:, place], expected, rtol=1e-5, atol=1e-5)


def test_sinks_do_not_rule_what_comes_without_them(dataset: ActivationDataset) -> None:
    of_all, of_some = (
        dataset.batches(8, layers=[0], sites=["residual"], center=True, scale="unit_rms", **asked).normalisation
        for asked in ({}, SOME)
    )
    assert of_all is not None
    assert of_some is not None
    tap = (0, "residual")
    assert np.linalg.norm(of_some[tap].mean - (5, -3, 0, 20)) < 1 < np.linalg.norm(of_all[tap].mean - (5, -3, 0, 20))
    assert of_some[tap].factor > 100 * of_all[tap].factor
    assert of_all.measured == "the statistics of all 91 tokens"
    assert of_some.measured == "86 of the selected tokens, from all over"


def test_a_mean_of_chosen_tokens_is_estimated_from_few_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs.write(tmp_path, [[sample(n, 400) for n in range(6)]], outputs.shard_format(SITES, name="safetensors"))
    monkeypatch.setattr(layertap.reader.measuring, "SOME_TOKENS", 1200)
    dataset = ActivationDataset(tmp_path)
    batches = [dataset.batches(8, center=True, scale="unit_rms", seed=seed, **SOME) for seed in (0, 1)]
    rows = all_rows(batches[0])
    np.testing.assert_allclose(rows.mean(axis=0), 0, atol=0.15)
    np.testing.assert_allclose((rows * rows).mean(axis=(0, 2)), 1, atol=0.1)
    summaries = [own.normalisation.summary() for own in batches if own.normalisation]
    assert summaries[0] == summaries[1]


@pytest.mark.parametrize("framework", ["numpy", "torch", "jax"])
@pytest.mark.parametrize("asked", [None, "float32", "bfloat16", "float16"])
def test_bfloat16_is_mapped_in_float32(tmp_path: Path, framework: Any, asked: Any) -> None:
    outputs.write(tmp_path, shards(), outputs.shard_format(SITES, dtype="bfloat16", name="safetensors"))
    dataset = ActivationDataset(tmp_path)
    batches = dataset.batches(8, layers=[0], sites=["mlp"], center=True, as_=framework, dtype=asked, shuffle=False)
    assert batches.normalisation is not None
    mean = batches.normalisation[0, "mlp"].mean
    for batch, plain in zip(batches, dataset.batches(8, layers=[0], sites=["mlp"], shuffle=False), strict=True):
        assert str(batch.activations.dtype).removeprefix("torch.") == (asked or "float32")
        values = batch.activations.float().numpy() if framework == "torch" else np.asarray(batch.activations)
        expected = plain.activations.astype(np.float32) - mean.astype(np.float32)
        rounded = (
            expected
            if asked is None
            else expected.astype(outputs.np.dtype(plain.activations.dtype if asked == "bfloat16" else asked))
        )
        np.testing.assert_array_equal(values.astype(np.float32), rounded.astype(np.float32))


def test_a_map_that_is_given_is_taken(dataset: ActivationDataset) -> None:
    first = dataset.batches(8, center=True, scale="sqrt_d", **SOME).normalisation
    assert first is not None
    given = Normalisation.from_state_dict(first.state_dict())
    batches = dataset.batches(8, normalisation=given, seed=9)
    assert batches.normalisation is given
    again = all_rows(dataset.batches(8, normalisation=given, center=True, scale="sqrt_d", seed=9))
    np.testing.assert_array_equal(all_rows(batches), again)


def test_a_map_of_something_else_is_refused(dataset: ActivationDataset) -> None:
    one = dataset.batches(8, layers=[0], scale="unit_rms").normalisation
    assert one is not None
    with pytest.raises(UsageError, match="has no map of layer 2 at residual, layer 2 at mlp"):
        dataset.batches(8, normalisation=one)
    with pytest.raises(UsageError, match="was made with center=False, scale=unit_rms, but you ask for center=True"):
        dataset.batches(8, layers=[0], normalisation=one, center=True)
    with pytest.raises(UsageError, match="scale: rms is unknown; give unit_rms, sqrt_d"):
        dataset.batches(8, scale="rms")  # type: ignore[arg-type]


def test_a_state_of_another_normalisation_is_refused(dataset: ActivationDataset) -> None:
    asked: Sequence[dict[str, Any]] = [{}, {"center": True}, {"center": True, "scale": "unit_rms"}]
    states = [dataset.batches(8, **own).state_dict() for own in asked]
    for there, state in enumerate(states):
        for here, own in enumerate(asked):
            batches = dataset.batches(8, **own)
            if there == here:
                batches.load_state_dict(state)
            else:
                with pytest.raises(UsageError, match=r"with another normalisation.*\n.* there\n.* now"):
                    batches.load_state_dict(state)


def test_a_dataset_without_tokens_has_nothing_to_measure(tmp_path: Path) -> None:
    form = outputs.shard_format(name="safetensors")
    outputs.write(tmp_path, [[outputs.sample(0, 1)]], form)
    for center in (True, False):
        with pytest.raises(UsageError, match="no selected token is finite"):
            ActivationDataset(tmp_path).batches(4, center=center, scale="unit_rms", exclude={"first"})


def test_taps_of_several_widths_have_a_map_each(tmp_path: Path) -> None:
    widths = {Tap(0, "residual"): 4, Tap(0, "mlp"): 6}
    form = ShardFormat(widths, np.dtype(np.float32), compress=True, name="safetensors")
    outputs.write(tmp_path, outputs.three_shards(widths=widths), form)
    batches = ActivationDataset(tmp_path).batches(23, center=True, scale="unit_rms")
    (batch,) = list(batches)
    for tap, width in widths.items():
        assert batch.activations[tap].shape == (23, width)
        np.testing.assert_allclose(batch.activations[tap].mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose((batch.activations[tap] ** 2).mean(), 1, rtol=1e-5)


@pytest.fixture(scope="module")
def real_run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, demo_tasks: Path) -> Path:
    config = runs.small_run(
        demo_tasks,
        tiny_model,
        tmp_path_factory.mktemp("run"),
        activation_type=("mlp_in", "mlp"),
        format="safetensors",
        storage_dtype="bfloat16",
    )
    runs.finished(config)
    return runs.out(config)


def test_a_transcoder_of_a_real_run_is_folded_into_one_of_raw_activations(real_run: Path) -> None:
    dataset, rng = ActivationDataset(real_run), np.random.default_rng(0)
    batches = dataset.batches(512, inputs=("mlp_in", 1), targets=("mlp", 1), center=True, scale="unit_rms", **SOME)
    assert batches.normalisation is not None
    inputs, targets = (batches.normalisation[1, site] for site in ("mlp_in", "mlp"))
    width = dataset.width(1, "mlp")
    W_enc, b_enc = rng.normal(size=(width, 200)) / width**0.5, rng.normal(size=200)
    epoch = list(batches)
    x, y = (
        np.concatenate([getattr(batch, side) for batch in epoch]).astype(np.float64) for side in ("inputs", "targets")
    )
    features = np.maximum(x @ W_enc + b_enc, 0)
    W_dec = np.linalg.lstsq(features, y, rcond=None)[0]
    explained = 1 - np.square(y - features @ W_dec).sum() / np.square(y).sum()
    assert explained > 0.5
    folded = fold(W_enc, b_enc, W_dec, np.zeros(width), inputs, targets)
    for sample in dataset[:3]:
        raw = sample.activation(1, "mlp_in").astype(np.float64)
        expected = targets.undo(np.maximum(inputs.apply(raw) @ W_enc + b_enc, 0) @ W_dec)
        predicted = np.maximum(raw @ folded.W_enc + folded.b_enc, 0) @ folded.W_dec + folded.b_dec
        np.testing.assert_allclose(predicted, expected, rtol=0, atol=1e-9 * np.abs(expected).max())


def test_the_statistics_of_a_real_run_tell_what_its_prompts_begin_with(
    real_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["stats", "--json", str(real_run)]) == 0
    told = json.loads(capsys.readouterr().out)
    ids = [sample.token_ids.tolist() for sample in ActivationDataset(real_run)]
    common = len(list(takewhile(lambda column: len(set(column)) == 1, zip(*ids, strict=False))))
    assert common > 10
    assert {one["prefix_tokens"] for one in told} == {common}
    assert all(0 < one["prefix_share"] < 1 for one in told)
