"""`layertap view`: the page holds the stored numbers, and texts stay plain text."""

import math
import re
from pathlib import Path

import numpy as np
import outputs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs import finished, out, small_run
from view_pages import Page, view

import layertap
from layertap.core.taps import Tap
from layertap.view.html.codes import INFINITY, MINUS_INFINITY, NAN, decode, encode

FLOATS = st.floats(allow_nan=False, allow_infinity=False, width=32)


@given(st.lists(FLOATS | st.sampled_from([0.0, 1.0, 999.5, 0.9995, -1e-3, 1e17, 9.994e17]), min_size=1))
def test_codes_are_exact_in_three_digits(values: list[float]) -> None:
    shown = decode(encode(np.array(values)))
    for value, found in zip(values, shown.tolist(), strict=True):
        rounded = float(f"{value:.3g}")
        if abs(rounded) < 1e-18:
            assert found == 0
        elif abs(rounded) >= 1e18:
            assert math.isinf(found)
            assert (found > 0) == (value > 0)
        else:
            # Halfway between two codes, the last bit of a division may decide.
            assert found == pytest.approx(rounded, rel=1e-12) or abs(found - value) <= 0.0050001 * abs(value)


@given(st.integers(100, 999), st.integers(-18, 17), st.booleans())
def test_what_has_three_digits_comes_back_as_it_is(mantissa: int, exponent: int, negative: bool) -> None:
    value = float(f"{'-' if negative else ''}{mantissa}e{exponent - 2}")
    assert decode(encode(np.array([value]))).tolist() == pytest.approx([value], rel=1e-12)


def test_what_is_no_number_is_kept() -> None:
    found = encode(np.array([np.nan, np.inf, -np.inf, 0.0, -0.0]))
    assert found.tolist() == [NAN, INFINITY, MINUS_INFINITY, 0, 0]
    shown = decode(found)
    assert np.isnan(shown[0])
    assert shown[1:].tolist() == [np.inf, -np.inf, 0.0, 0.0]


@pytest.fixture(scope="module")
def run(few_tasks: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    config = small_run(
        few_tasks, tiny_model, folder, format="safetensors", activation_type=("residual", "neurons"), certify=2
    )
    finished(config)
    return out(config)


@pytest.fixture(scope="module")
def page(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    path = tmp_path_factory.mktemp("page") / "page.html"
    assert view(run, "--out", path, "--channels", "3") == 0
    return Page(path)


def test_the_page_has_the_numbers_that_are_stored(page: Page, run: Path) -> None:
    dataset = layertap.ActivationDataset(run)
    assert len(page.samples) == len(dataset)
    taps = [Tap(tap["layer"], tap["site"]) for tap in page.run["taps"]]
    assert taps == [Tap(1, "residual"), Tap(3, "residual"), Tap(1, "neurons"), Tap(3, "neurons")]
    for number in (0, len(dataset) - 1):
        header, values = page.unpack(number)
        sample = dataset[number]
        assert (header["sample_idx"], header["task"], header["ids"]) == (
            sample.sample_idx,
            sample.task_id,
            sample.token_ids.tolist(),
        )
        assert "".join(header["texts"][text] for text in header["text_of"]) == sample.text
        assert [header["roles"][role] for role in header["role_of"]] == sample.labels.role_names.tolist()
        for place, tap in enumerate(taps):
            activation = sample.activation(*tap).astype(np.float64)
            expected = dict.fromkeys(page.run["names"], np.full(len(sample), np.nan))
            expected["norm"] = sample.norms(*tap).astype(np.float64)
            expected["channel 3"] = activation[:, 3]
            if tap.layer == 3:
                below = sample.activation(1, tap.site).astype(np.float64)
                expected["step"] = np.linalg.norm(activation - below, axis=1)
            for name in ("norm", "channel 3", "step"):
                found = values[page.run["names"].index(name), place]
                np.testing.assert_allclose(found, expected[name], rtol=0.0051, err_msg=f"{name} {tap}")


def test_cosine_and_deviation_are_those_of_the_whole_run(page: Page, run: Path) -> None:
    dataset, tap = layertap.ActivationDataset(run), Tap(3, "residual")
    whole = np.concatenate([sample.activation(*tap).astype(np.float64) for sample in dataset])
    mean, spread = whole.mean(axis=0), np.sqrt(((whole - whole.mean(axis=0)) ** 2).sum(axis=1).mean())
    _, values = page.unpack(2)
    activation = dataset[2].activation(*tap).astype(np.float64)
    cosine = activation @ mean / np.linalg.norm(activation, axis=1) / np.linalg.norm(mean)
    np.testing.assert_allclose(values[page.run["names"].index("cosine"), 1], cosine, rtol=0.0051, atol=1e-6)
    deviation = np.linalg.norm(activation - mean, axis=1) / spread
    np.testing.assert_allclose(values[page.run["names"].index("deviation"), 1], deviation, rtol=0.0051)


def test_grids_are_those_of_the_prompt_with_the_token_of_each_cell(page: Page, run: Path) -> None:
    header, _ = page.unpack(1)
    sample = layertap.ActivationDataset(run)[1]
    grids = sample.labels.grids()
    assert [(grid["pair"], grid["side"]) for grid in header["grids"]] == list(grids)
    for grid in header["grids"]:
        colours = grids[grid["pair"], grid["side"]]
        assert grid["cells"]["colours"] == [list(row) for row in colours or ()]
        for row, line in enumerate(grid["cells"]["tokens"]):
            for col, token in enumerate(line):
                assert sample.labels.side[token] > 0
                assert (sample.labels.row[token], sample.labels.col[token]) == (row, col)


def test_the_run_is_described(page: Page, run: Path) -> None:
    dataset = layertap.ActivationDataset(run)
    facts = dict(page.run["facts"])
    assert (facts["samples"], facts["tokens"], facts["state"]) == (
        f"{len(dataset):,}",
        f"{dataset.tokens:,}",
        "complete",
    )
    assert sum(page.run["roles"].values()) == dataset.tokens
    assert page.run["certificate"]["prompts"] == 2
    assert all(0 <= share <= 1 for share in (*page.run["shares"]["sinks"], *page.run["shares"]["prefix"]))


def test_samples_layers_and_sites_are_those_asked_for(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    assert view(run, "--out", path, "--samples", "4", "1", "--layers", "3", "--sites", "neurons") == 0
    page = Page(path)
    assert [entry["sample_idx"] for entry in page.samples] == [4, 1]
    assert [(tap["layer"], tap["site"]) for tap in page.run["taps"]] == [(3, "neurons")]


def test_a_page_stays_as_small_as_asked(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "page.html"
    assert view(run, "--out", path, "--max_mb", "0.2") == 0
    assert path.stat().st_size <= 0.2e6
    said = capsys.readouterr().out
    page = Page(path)
    assert 0 < len(page.samples) < len(layertap.ActivationDataset(run))
    assert f"{len(page.samples)} samples" in said
    assert "more are not shown" in said


def test_one_long_sample_is_cut_to_what_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs.write(tmp_path / "run", [[outputs.sample(0, 60_000)]], outputs.shard_format(name="safetensors"))
    path = tmp_path / "page.html"
    assert view(tmp_path / "run", "--out", path, "--max_mb", "0.3") == 0
    assert 0.2e6 < path.stat().st_size <= 0.3e6
    header, values = Page(path).unpack(0)
    assert header["left_out"] == 60_000 - header["tokens"] > 0
    assert values.shape[2] == header["tokens"]
    assert view(tmp_path / "run", "--out", path, "--max_mb", "0.03") == 2
    assert "not even the beginning of a sample fits" in capsys.readouterr().err


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u202e\u2028"


def test_texts_of_a_run_are_never_markup(tmp_path: Path) -> None:
    import dataclasses

    samples = [dataclasses.replace(outputs.sample(index), task_id=HOSTILE * (5 if index else 1)) for index in range(2)]
    outputs.write(tmp_path / "run", [samples], outputs.shard_format(name="safetensors"))
    path = tmp_path / "page.html"
    assert view(tmp_path / "run", "--out", path) == 0
    page = Page(path)
    assert page.samples[0]["task"] == HOSTILE
    assert len(page.samples[1]["task"]) == 201
    data = page.text[page.text.index("</main>") :]
    assert data.count("<script") == data.count("</script>") == 2 + len(page.samples) + 1
    assert "<img" not in page.text
    assert "\u2028" not in page.text
    assert page.unpack(0)[0]["texts"] is None


def test_pickles_and_many_workers_are_shown_too(tmp_path: Path) -> None:
    for worker, form in enumerate(("pickle", "safetensors")):
        shards = [[outputs.sample(2 * worker + index) for index in range(2)]]
        outputs.write(tmp_path / "run" / f"tpu_{worker}", shards, outputs.shard_format(name=form))
    path = tmp_path / "page.html"
    assert view(tmp_path / "run", "--out", path) == 0
    page = Page(path)
    assert [entry["source"] for entry in page.samples] == ["tpu_0", "tpu_0", "tpu_1", "tpu_1"]
    assert page.run["shares"] is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--samples", "999"], "--samples 999: .* has no sample_idx 999"),
        (["--layers", "2"], "not layer 2"),
        (["--max_mb", "0"], "--max_mb must be positive"),
        (["--channels", "-1"], "channels are counted from 0"),
        (["--tokenizer", "nowhere"], "nowhere is neither a folder nor a Hub id"),
    ],
    ids=str,
)
def test_what_is_not_there_is_refused(
    run: Path, tmp_path: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert view(run, "--out", tmp_path / "page.html", *flags) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "page.html").exists()
