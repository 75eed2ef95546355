"""Features on the page of `layertap view`: those of the table, and where they are largest."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import outputs
import pytest
from autoencoders import write_autoencoder
from runs import finished, out, small_run
from view_pages import Page, view

import layertap
from layertap.config.view import ViewConfig
from layertap.core.taps import Tap
from layertap.reader.dataset import ActivationDataset
from layertap.sae.autoencoder import Autoencoder
from layertap.sae.count import count_features
from layertap.sae.load import load_autoencoder
from layertap.sae.table import FeatureTable, LabelGroup
from layertap.view.html.interest import LEAST, find_strongest, order_by_interest
from layertap.view.html.write import write_page

TAP = Tap(3, "residual")
COLOUR, EDGE = LabelGroup("colour", ("black", "red", "blue")), LabelGroup("edge", ("edge", "inside"))


@pytest.fixture(scope="module")
def run(few_tasks: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    config = small_run(few_tasks, tiny_model, folder, format="safetensors", activation_type=("residual", "neurons"))
    finished(config)
    return out(config)


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An autoencoder of the residual stream after layer 3."""
    return write_autoencoder(tmp_path_factory.mktemp("sae"), hook="blocks.3.hook_resid_post")


@pytest.fixture(scope="module")
def page(run: Path, autoencoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    path = tmp_path_factory.mktemp("page") / "page.html"
    assert view(run, "--out", path, "--sae", autoencoder) == 0
    return Page(path)


@pytest.fixture(scope="module")
def table(run: Path, autoencoder: Path) -> FeatureTable:
    return count_features(ActivationDataset(run), load_autoencoder(autoencoder), TAP)


def made_table(active: list[int], colours: list[list[int]], edges: list[list[int]], tokens: int) -> FeatureTable:
    """A table of features that fire at so many tokens, with the given counts of labels."""
    count, each = len(active), np.array(active, np.int64)
    return FeatureTable(
        tap=TAP,
        tokens=tokens,
        samples=1,
        active=each,
        sums=each * 2.0,
        edges=np.array([0.5, 1, 2]),
        histogram=np.stack([each, 0 * each], axis=1),
        groups=(COLOUR, EDGE),
        label_tokens={"colour": np.array([8000, 1000, 1000]), "edge": np.array([4000, 6000])},
        label_active={"colour": np.array(colours, np.int64), "edge": np.array(edges, np.int64)},
        top_samples=np.zeros((count, 1), np.int64),
        top_tokens=np.zeros((count, 1), np.int64),
        top_values=np.ones((count, 1), np.float32),
    )


def test_a_feature_is_most_about_the_label_that_tells_most() -> None:
    few = LEAST - 1
    table = made_table(
        [200, 100, 100, 0],
        [[100, 80, 20], [70, few, 11], [80, 10, 10], [0, 0, 0]],
        [[200, 0], [40, 60], [40, 60], [0, 0]],
        tokens=10_000,
    )
    strongest = find_strongest(table)
    # The first is always at the edge (1.32 bits), and red at 2 of 5 tokens (0.4 times 2 bits).
    assert strongest.value.tolist() == [3, -1, -1, -1]
    assert strongest.told[0] == pytest.approx(np.log2(2.5))
    assert strongest.told[1:].tolist() == [0, 0, 0]


def test_the_best_of_each_label_comes_first_and_what_is_too_common_last() -> None:
    red, mostly_red, blue, common, idle = [0, 100, 0], [20, 80, 0], [40, 0, 60], [0, 2000, 0], [0, 0, 0]
    black = [85, 15, 0]
    at = [[40, 60], [40, 60], [40, 60], [800, 1200], [0, 0], [40, 60]]
    table = made_table([100, 100, 100, 2000, 0, 100], [red, mostly_red, blue, common, idle, black], at, tokens=10_000)
    assert order_by_interest(table, find_strongest(table)) == [0, 2, 1, 5, 3]


def test_lists_have_the_numbers_of_the_table(page: Page, table: FeatureTable) -> None:
    listed = page.listed(0)
    header, features = listed.header, listed.numbers[:, 0]
    assert sorted(features.tolist()) == list(range(96))
    assert (header["layer"], header["site"], header["tokens"], header["samples"]) == (3, "residual", table.tokens, 16)
    assert header["edges"] == table.edges.tolist()
    assert [(group["name"], tuple(group["values"])) for group in header["groups"]] == [
        (group.name, group.values) for group in table.groups
    ]
    assert [group["tokens"] for group in header["groups"]] == [own.tolist() for own in table.label_tokens.values()]
    labels = [table.label_active[group.name] for group in table.groups]
    expected = np.concatenate([table.active[:, None], table.histogram, *labels], axis=1)[features]
    np.testing.assert_array_equal(listed.counts, expected)
    np.testing.assert_array_equal(listed.numbers[:, 1], find_strongest(table).value[features])
    sizes = np.stack([table.means, table.largest], axis=1)[features]
    np.testing.assert_allclose(listed.sizes, sizes, rtol=0.0051)


def test_the_drawn_ones_are_the_most_interesting(page: Page, table: FeatureTable) -> None:
    order = order_by_interest(table, find_strongest(table))
    assert page.features["drawn"] == [order[:40]]
    assert page.listed(0).numbers[:, 0].tolist()[:40] == order[:40]
    assert page.run["names"][4:] == [f"feature {feature}" for feature in order[:40]]
    assert page.run["features"] == [[f"feature {feature}", 0, feature] for feature in order[:40]]


def test_where_a_feature_is_largest_its_heat_and_its_token_are_there(
    page: Page, run: Path, autoencoder: Path, table: FeatureTable
) -> None:
    dataset, encoder = layertap.ActivationDataset(run), load_autoencoder(autoencoder)
    assert page.features["shown"]["places"] == page.features["shown"]["of"]
    for feature in page.features["drawn"][0][::13]:
        places = page.features["places"][0][str(feature)]
        samples = [place for place in table.top_samples[feature].tolist() if place >= 0]
        assert len(places) == len(samples) > 0
        for rank, ((element, token, row, value), place) in enumerate(zip(places, samples, strict=True)):
            header, heats = page.top(element)
            sample = dataset[place]
            assert (header["sample_idx"], header["task"]) == (sample.sample_idx, sample.task_id)
            assert header["ids"] == sample.token_ids.tolist()
            assert token == table.top_tokens[feature, rank]
            assert value == pytest.approx(float(table.top_values[feature, rank]))
            expected = encoder.encode(sample.activation(*TAP))[:, feature]
            np.testing.assert_allclose(heats[row], expected, rtol=0.0051)
            assert heats[row][token] == pytest.approx(value, rel=0.0051)
            assert len(header["grids"]) == len(sample.labels.grids())


def test_named_features_are_drawn_and_shown_at_their_layer(run: Path, autoencoder: Path, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    assert view(run, "--out", path, "--sae", autoencoder, "--features", "5", "7", "--sites", "residual") == 0
    page, sample = Page(path), layertap.ActivationDataset(run)[1]
    assert page.run["saes"] == [{"name": "residual.3", "layer": 3, "site": "residual"}]
    assert page.run["names"][-2:] == ["feature 5", "feature 7"]
    assert page.features["drawn"] == [[5, 7]]
    assert page.features["named"] is True
    assert page.listed(0).header["listed"] == 96
    _, values = page.unpack(1)
    expected = load_autoencoder(autoencoder).encode(sample.activation(3, "residual"))
    for place, feature in enumerate((5, 7), -2):
        assert (expected[:, feature] > 0).any()
        np.testing.assert_allclose(values[place, 1], expected[:, feature], rtol=0.0051)
        assert np.isnan(values[place, 0]).all()


def test_several_autoencoders_are_shown_side_by_side(run: Path, autoencoder: Path, tmp_path: Path) -> None:
    other = write_autoencoder(tmp_path / "other", width=160, features=20)
    third = write_autoencoder(tmp_path / "third", features=30)
    path = tmp_path / "page.html"
    folders = (autoencoder, other, third)
    assert view(run, "--out", path, "--sae", *folders, "--sae_tap", "neurons.1", "residual.3", "--features", "4") == 0
    page = Page(path)
    assert [sae["name"] for sae in page.run["saes"]] == ["residual.3 (1)", "neurons.1", "residual.3 (2)"]
    assert page.run["names"][4:] == [
        "feature 4 of residual.3 (1)",
        "feature 4 of neurons.1",
        "feature 4 of residual.3 (2)",
    ]
    assert [page.listed(number).header["features"] for number in range(3)] == [96, 20, 30]
    sample, (_, values) = layertap.ActivationDataset(run)[0], page.unpack(0)
    taps = [Tap(tap["layer"], tap["site"]) for tap in page.run["taps"]]
    for row, folder, tap in zip((4, 5, 6), folders, (TAP, Tap(1, "neurons"), TAP), strict=True):
        expected = load_autoencoder(folder).encode(sample.activation(*tap))[:, 4]
        np.testing.assert_allclose(values[row, taps.index(tap)], expected, rtol=0.0051)


def texts(folder: Path) -> Path:
    """A run without labels, of two samples of 300 tokens."""
    outputs.write(
        folder, [[outputs.sample(index, 300) for index in range(2)]], outputs.shard_format(name="safetensors")
    )
    return folder


def table_of_texts(_dataset: ActivationDataset, autoencoder: Autoencoder, tap: Tap) -> FeatureTable:
    """Each feature is largest at token 200 of the second sample. Its next largest value is at token
    10 of the first sample.
    """
    count = autoencoder.features
    return FeatureTable(
        tap=tap,
        tokens=600,
        samples=2,
        active=np.full(count, 50),
        sums=np.full(count, 75.0),
        edges=np.array([1.0, 2.0]),
        histogram=np.full((count, 1), 50),
        groups=(),
        label_tokens={},
        label_active={},
        top_samples=np.tile([1, 0, -1], (count, 1)),
        top_tokens=np.tile([200, 10, -1], (count, 1)),
        top_values=np.tile(np.array([2.5, 1.5, 0], np.float32), (count, 1)),
    )


def test_of_texts_the_tokens_around_the_largest_are_there(tmp_path: Path) -> None:
    folder = write_autoencoder(tmp_path / "sae", width=4, features=8, hook="blocks.2.hook_resid_post")
    run, path = texts(tmp_path / "run"), tmp_path / "page.html"
    write_page(ViewConfig(path=str(run), out=str(path), sae=(str(folder),)), count=table_of_texts)
    page, dataset = Page(path), layertap.ActivationDataset(run)
    places = page.features["places"][0]["3"]
    assert [value for *_, value in places] == [2.5, 1.5]
    for (element, token, _, _), (place, row) in zip(places, ((1, 200), (0, 10)), strict=True):
        header, heats = page.top(element)
        assert header["ids"][token] == dataset[place].token_ids[row]
        assert header["begin"] + token == row
        assert header["begin"] + header["tokens"] <= 300
        assert 50 <= header["tokens"] == heats.shape[1] < 150
        assert header["grids"] == []


@pytest.mark.whole
@pytest.mark.parametrize("megabytes", [0.2, 0.28, 0.5])
def test_a_page_with_features_stays_as_small_as_asked(
    run: Path, autoencoder: Path, tmp_path: Path, megabytes: float, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "page.html"
    assert view(run, "--out", path, "--sae", autoencoder, "--max_mb", str(megabytes)) == 0
    assert path.stat().st_size <= megabytes * 1e6
    page, said = Page(path), capsys.readouterr().out
    shown = page.features["shown"]
    assert page.samples
    places = [place for of in page.features["places"][0].values() for place in of]
    assert shown["places"] == sum(element >= 0 for element, *_ in places) <= len(places) == shown["of"]
    assert page.listed(0).header["listed"] == shown["features"]
    assert (f"at {shown['places']} of their {shown['of']} largest places" in said) == (shown["places"] < shown["of"])
    for element, token, row, value in places:
        if element >= 0:
            assert page.top(element)[1][row][token] == pytest.approx(value, rel=0.0051)


def test_a_list_that_does_not_fit_has_the_most_interesting_features(tmp_path: Path) -> None:
    folder = write_autoencoder(tmp_path / "sae", width=4, features=30_000, hook="blocks.2.hook_resid_post")
    run, path = texts(tmp_path / "run"), tmp_path / "page.html"
    _, said = write_page(ViewConfig(path=str(run), out=str(path), sae=(str(folder),), max_mb=0.2), count=table_of_texts)
    page = Page(path)
    listed = page.listed(0).numbers[:, 0].tolist()
    assert 40 <= len(listed) < 30_000
    assert listed == list(range(len(listed)))
    assert f"{len(listed)} of 30000 features, 40 of them drawn in full" in said
    assert path.stat().st_size <= 0.2e6


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sae", "{sae}", "--layers", "1"], "was trained at residual.3, which is not shown"),
        (["--sae", "{sae}", "--features", "96"], "--features 96: {sae} has features 0 to 95"),
        (["--sae", "{sae}", "--sae_tap", "neurons.3"], "takes activations of width 64; layer 3 at neurons is 160 wide"),
        (["--sae", "{sae}", "--sae_tap", "nonsense"], "give --sae_tap, one of residual.1"),
        (["--sae", "{sae}", "{sae}", "{sae}", "--sae_tap", "residual.1", "residual.3"], "--sae_tap: gives 2; give one"),
        (["--features", "3"], "need --sae"),
        (["--neuronpedia", "np"], "need --sae"),
        (["--sae", "{sae}", "--neuronpedia", "np", "--terminal"], "--terminal writes nothing"),
        (["--sae", "nowhere"], "no such file"),
        (["--sae", "{sae}", "--max_mb", "0.07"], "--max_mb: not even"),
    ],
    ids=str,
)
def test_an_autoencoder_that_does_not_fit_is_refused(
    run: Path, autoencoder: Path, tmp_path: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[Any] = [flag.format(sae=autoencoder) for flag in flags]
    assert view(run, "--out", tmp_path / "page.html", *given) == 2
    assert message.format(sae=autoencoder) in capsys.readouterr().err


def test_features_are_written_for_neuronpedia_beside_the_page(
    run: Path, autoencoder: Path, table: FeatureTable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide, np_ = write_autoencoder(tmp_path / "wide", width=160), tmp_path / "np"
    flags = ("--sae_tap", "neurons.1", "--neuronpedia", np_, "--max_samples", "1")
    assert view(run, "--out", tmp_path / "page.html", "--sae", autoencoder, wide, *flags) == 0
    files = sorted(str(path.relative_to(np_)) for path in np_.rglob("*.json"))
    assert files == ["neurons.1/batch-0.json", "residual.3/batch-0.json"]
    assert f"2 files for Neuronpedia below {np_}" in capsys.readouterr().out
    batch = json.loads((np_ / "residual.3" / "batch-0.json").read_text())
    model = Path(layertap.ActivationDataset(run).model_path).name
    assert (batch["model_id"], batch["layer"], batch["sae_set"]) == (model.lower(), 3, autoencoder.name)
    assert [feature["feature_index"] for feature in batch["features"]] == np.flatnonzero(table.active).tolist()
    assert [feature["frac_nonzero"] for feature in batch["features"]] == table.density[table.active > 0].tolist()


def test_two_autoencoders_of_one_place_have_folders_of_their_own(run: Path, autoencoder: Path, tmp_path: Path) -> None:
    other = write_autoencoder(tmp_path / "other", features=30, hook="blocks.3.hook_resid_post")
    flags = ("--neuronpedia", tmp_path / "np", "--max_samples", "1")
    assert view(run, "--out", tmp_path / "page.html", "--sae", autoencoder, other, *flags) == 0
    assert sorted(path.name for path in (tmp_path / "np").iterdir()) == ["residual.3-1", "residual.3-2"]


def test_files_of_another_autoencoder_are_not_uploaded_with_it(
    run: Path, autoencoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left = tmp_path / "np" / "residual.3" / "batch-1.json"
    left.parent.mkdir(parents=True)
    left.write_text("{}")
    flags = ("--sae", autoencoder, "--neuronpedia", tmp_path / "np", "--max_samples", "1")
    assert view(run, "--out", tmp_path / "page.html", *flags) == 2
    assert "has batch-1.json of another autoencoder" in capsys.readouterr().err
    left.unlink()
    assert view(run, "--out", tmp_path / "page.html", *flags) == 0


def test_without_a_tokenizer_nothing_is_written_for_neuronpedia(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_autoencoder(tmp_path / "sae", width=4, features=8, hook="blocks.2.hook_resid_post")
    flags = ("--sae", folder, "--neuronpedia", tmp_path / "np")
    assert view(texts(tmp_path / "run"), "--out", tmp_path / "page.html", *flags) == 2
    assert "no tokenizer for the text" in capsys.readouterr().err
    assert not (tmp_path / "np").exists()
    assert not (tmp_path / "page.html").exists()
