"""The tab of features in a real browser: it shows the table's numbers, colours the grids, and every
control works.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs

import numpy as np
import pytest
from playwright.sync_api import Page
from safetensors.numpy import save_file

import layertap
from layertap.cli import main
from layertap.config.view import ViewConfig
from layertap.core.taps import Tap
from layertap.reader.dataset import ActivationDataset
from layertap.sae.autoencoder import Autoencoder
from layertap.sae.count import count_features
from layertap.sae.load import load_autoencoder
from layertap.sae.table import FeatureTable, LabelGroup
from layertap.view.html.interest import LEAST
from layertap.view.html.write import write_page

Open = Callable[..., Page]
Keep = Callable[[Page, str], None]
FEATURES = 300
TAP = Tap(2, "residual")
CELL = 22
ARC = ["#000000", "#0074D9", "#FF4136", "#2ECC40", "#FFDC00", "#AAAAAA", "#F012BE", "#FF851B", "#7FDBFF", "#870C25"]
BLUE = (5, 80, 174)


def write_autoencoder(folder: Path, hook: str = "blocks.2.hook_resid_post") -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    shapes = {"W_enc": (64, FEATURES), "W_dec": (FEATURES, 64), "b_enc": (FEATURES,), "b_dec": (64,)}
    save_file(
        {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()},
        folder / "sae_weights.safetensors",
    )
    (folder / "cfg.json").write_text(json.dumps({"architecture": "topk", "k": 8, "metadata": {"hook_name": hook}}))
    return folder


@pytest.fixture(scope="session")
def sae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_autoencoder(tmp_path_factory.mktemp("autoencoder") / "sae")


@pytest.fixture(scope="session")
def page_file(run: Path, sae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("features") / "page.html"
    assert main(["view", str(run), "--out", str(path), "--sae", str(sae), "--max_samples", "8"]) == 0
    return path


@pytest.fixture(scope="session")
def table(run: Path, sae: Path) -> FeatureTable:
    return count_features(ActivationDataset(run), load_autoencoder(sae), TAP)


def ready(page: Page, begins: str = "feature") -> None:
    page.wait_for_selector(f'body[data-ready^="{begins}"]')


def told(page: Page) -> dict[str, str]:
    """Return what the address says."""
    return {name: values[0] for name, values in parse_qs(page.url.partition("#")[2]).items()}


def rows(page: Page, table: str) -> list[list[str]]:
    script = f"[...document.querySelectorAll('{table} tr')].map(row => [...row.children].map(cell => cell.textContent))"
    found: list[list[str]] = page.evaluate(script)
    return found


def number(text: str) -> float:
    return float(text.removesuffix(", few").replace(",", "").replace("−", "-").removesuffix("%"))


def three(value: float) -> float:
    return float(f"{value:.3g}")


def numbered(row: list[str]) -> int:
    return int(row[0].split()[0])


@pytest.mark.parametrize("width", [1280, 390])
def test_it_opens_at_any_width_without_a_complaint(
    open_page: Open, page_file: Path, width: int, run: Path, table: FeatureTable, keep: Keep
) -> None:
    page = open_page(page_file, width=width)
    page.click("#tab-feature")
    ready(page)
    about_cells(page, table, run)
    keep(page, f"features-{width}")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#tops canvas").count() > 1
    assert page.is_hidden("#run-page")
    assert page.is_hidden("#sample-page")


def test_the_list_has_the_numbers_of_the_table(open_page: Open, page_file: Path, table: FeatureTable) -> None:
    page = open_page(page_file, "#tab=feature")
    ready(page)
    seen: set[int] = set()
    for _ in range(6):
        for row in rows(page, "#feature-list")[1:]:
            feature = numbered(row)
            seen.add(feature)
            density, mean, largest = map(number, row[3:])
            assert density == three(100 * table.density[feature])
            assert mean == three(table.means[feature])
            assert largest == three(table.largest[feature])
            if row[1] not in ("–", "never fires"):
                lift, label = row[1].split(" × ")
                lifts = {
                    f"{group.name}: {group.values[value]}": (own, fired)
                    for group, value, own, fired in table.lifts_of(feature)
                }
                assert number(lift) == three(lifts[label][0])
                assert number(row[2]) == lifts[label][1] >= LEAST
        if page.is_enabled("#features-after"):
            page.click("#features-after")
    assert seen == set(range(FEATURES))


def test_what_a_feature_fires_on_is_that_of_the_table(
    open_page: Open, page_file: Path, run: Path, table: FeatureTable
) -> None:
    page = open_page(page_file, "#tab=feature")
    ready(page)
    feature = about_cells(page, table, run)
    said = page.text_content("#feature-facts") or ""
    assert f"at {table.active[feature]:,} of {table.tokens:,} tokens" in said
    shown = {row[0]: row[1:] for row in rows(page, "#answers")[1:] + rows(page, "#answers-more")[1:]}
    expected = list(table.lifts_of(feature))
    assert len(shown) == len(expected) > 8
    for group, value, lift, fired in expected:
        row = shown[f"{group.name}: {group.values[value]}"]
        assert number(row[0]) == three(lift)
        assert number(row[2]) == fired
        assert row[2].endswith("few") == (fired < LEAST)
        of_all = table.label_tokens[group.name]
        assert number(row[3]) == three(100 * fired / table.label_active[group.name][feature].sum())
        assert number(row[4]) == three(100 * of_all[value] / of_all.sum())
    bins = [[number(cell) for cell in row] for row in rows(page, "#histogram-table")[1:]]
    filled = np.flatnonzero(table.histogram[feature])
    assert bins == [
        [three(table.edges[place]), three(table.edges[place + 1]), table.histogram[feature][place]] for place in filled
    ]


@pytest.mark.parametrize("order", ["density", "mean", "largest", "number", "lift"])
def test_features_are_ordered_as_asked(open_page: Open, page_file: Path, order: str) -> None:
    page = open_page(page_file, "#tab=feature")
    ready(page)
    page.select_option("#feature-order", order)
    page.wait_for_function("order => location.hash.includes(`features=${order}`)", arg=order)
    listed = rows(page, "#feature-list")[1:]
    key: dict[str, Callable[[list[str]], float]] = {
        "density": lambda row: -number(row[3]),
        "mean": lambda row: -number(row[4]),
        "largest": lambda row: -number(row[5]),
        "number": numbered,
        "lift": lambda row: -number(row[1].split()[0]) if "×" in row[1] else 1,
    }
    values = [key[order](row) for row in listed]
    assert values == sorted(values)
    assert len(set(values)) > 10


def test_features_are_left_by_label_number_and_grids(open_page: Open, page_file: Path, table: FeatureTable) -> None:
    page = open_page(page_file, "#tab=feature")
    ready(page)
    page.select_option("#feature-label", "colour: black")
    page.wait_for_function("() => location.hash.includes('label=colour')")
    group = next(group for group in table.groups if group.name == "colour")
    fits = (table.lifts(group)[:, 0] >= 2) & (table.label_active["colour"][:, 0] >= LEAST)
    assert {numbered(row) for row in rows(page, "#feature-list")[1:]} == set(np.flatnonzero(fits).tolist())
    page.select_option("#feature-label", "")
    page.fill("#feature-search", "12")
    page.wait_for_function("() => location.hash.includes('number=12')")
    assert {numbered(row) for row in rows(page, "#feature-list")[1:]} == {12, *range(120, 130)}
    page.fill("#feature-search", "")
    page.check("#feature-drawn")
    page.wait_for_function("() => document.querySelectorAll('#feature-list tr').length === 41")
    assert all("▦" in row[0] for row in rows(page, "#feature-list")[1:])


def pixel(page: Page, selector: str, x: int, y: int) -> tuple[int, ...]:
    script = (
        "([selector, x, y]) => [...document.querySelector(selector).getContext('2d').getImageData(x, y, 1, 1).data]"
    )
    return tuple(page.evaluate(script, [selector, x, y])[:3])


def place_of(page: Page) -> tuple[int, str, int, int, int]:
    """Return where the first of the largest values is: its sample, the side of the grid, row and
    column from 0, and the colour.
    """
    meta = page.text_content("#tops article:first-child .meta") or ""
    sample, place = int(meta.split(";")[0].split()[1]), meta.split("; ")[-1]
    words = place.replace(",", "").split()
    at = words.index("row")
    return sample, " ".join(words[:at]), int(words[at + 1]) - 1, int(words[at + 3]) - 1, int(words[at + 5])


def about_cells(page: Page, table: FeatureTable, run: Path) -> int:
    """Open a drawn feature whose largest value is in a cell."""
    dataset = layertap.ActivationDataset(run)
    page.check("#feature-drawn")
    for row in rows(page, "#feature-list")[1:]:
        feature = numbered(row)
        sample = dataset[int(table.top_samples[feature, 0])]
        if sample.labels.cells[table.top_tokens[feature, 0]] == 1:
            page.click(f'[data-key="0:{feature}"]')
            ready(page, f"feature 0:{feature}")
            return feature
    raise AssertionError("no drawn feature is largest in a cell")


def test_the_strongest_cell_is_marked_and_every_cell_has_its_heat(
    open_page: Open, page_file: Path, run: Path, sae: Path, table: FeatureTable
) -> None:
    page = open_page(page_file, "#tab=feature")
    ready(page)
    feature = about_cells(page, table, run)
    index, name, row, col, color = place_of(page)
    dataset = layertap.ActivationDataset(run)
    sample = dataset[int(table.top_samples[feature, 0])]
    token = int(table.top_tokens[feature, 0])
    assert (index, row, col) == (sample.sample_idx, sample.labels.row[token], sample.labels.col[token])
    heat = load_autoencoder(sae).encode(sample.activation(*TAP))[:, feature]
    title = page.text_content("#tops article:first-child h4") or ""
    assert title == f"1. {three(float(table.top_values[feature, 0])):g} in task {sample.task_id}"
    canvas = f'#tops article:first-child canvas[aria-label^="{name},"]'
    rgb = tuple(int(ARC[color].lstrip("#")[at : at + 2], 16) for at in (0, 2, 4))
    assert pixel(page, canvas, col * CELL + 2, row * CELL + 2) == BLUE
    assert pixel(page, canvas, col * CELL + 11, row * CELL + 2) == rgb
    labels = sample.labels
    same = (labels.example == labels.example[token]) & (labels.side == labels.side[token]) & (labels.cells == 1)
    for other in np.flatnonzero(same).tolist():
        own = "#" + f"{ARC[int(labels.colours[other])]}".lstrip("#")
        center = pixel(page, canvas, int(labels.col[other]) * CELL + 11, int(labels.row[other]) * CELL + 11)
        plain = tuple(int(own.lstrip("#")[at : at + 2], 16) for at in (0, 2, 4))
        assert (center != plain) == bool(heat[other] > 0), other
    page.click("#tops article:first-child button")
    assert page.locator("#tops article:first-child canvas").count() == len(labels.grids())


def test_a_cell_says_its_value_by_mouse_and_keyboard(
    open_page: Open, page_file: Path, run: Path, sae: Path, table: FeatureTable
) -> None:
    page = open_page(page_file, "#tab=feature")
    ready(page)
    feature = about_cells(page, table, run)
    sample = layertap.ActivationDataset(run)[int(table.top_samples[feature, 0])]
    heat = load_autoencoder(sae).encode(sample.activation(*TAP))[:, feature]
    page.locator("#tops article:first-child canvas").first.click(position={"x": 30, "y": 10})
    said = page.text_content("#tops article:first-child .said") or ""
    assert "row 1, column 2" in said
    page.keyboard.press("ArrowDown")
    said = page.text_content("#tops article:first-child .said") or ""
    assert "input, row 2, column 2" in said
    labels = sample.labels
    pair, side = said.partition(" at ")[2].split(" input")[0], 1
    example = -2 if pair == "test" else int(pair.split()[1]) - 1
    (token,) = np.flatnonzero(
        (labels.example == example)
        & (labels.side == side)
        & (labels.row == 1)
        & (labels.col == 1)
        & (labels.cells == 1)
    )
    assert number(said.split()[0]) == three(float(heat[token]))


def test_a_place_opens_in_samples_and_leads_back(
    open_page: Open, page_file: Path, run: Path, table: FeatureTable
) -> None:
    page = open_page(page_file, "#tab=feature")
    ready(page)
    page.check("#feature-drawn")
    page.click("#tops-more")
    opener = page.locator("#tops a").first
    article = page.locator("#tops article", has=page.locator("a")).first
    index = (article.locator(".meta").text_content() or "").split(";")[0].split()[1]
    title = article.locator("h4").text_content() or ""
    opener.click()
    page.wait_for_function("() => document.body.dataset.ready.startsWith('sample')")
    assert told(page)["sample"] == index
    assert told(page)["value"].startswith("feature ")
    assert told(page)["layer"] == "2"
    assert f"{told(page)['value']} {title.split()[1]}" in (page.text_content("#detail-text") or "")
    page.click("#to-feature")
    ready(page)
    assert f"Feature {told(page)['value'].split()[1]} of" in (page.text_content("#feature-name") or "")


def test_a_link_shows_the_same_again(open_page: Open, page_file: Path) -> None:
    page = open_page(page_file, "#tab=feature")
    ready(page)
    page.select_option("#feature-order", "density")
    page.click("#features-after")
    page.wait_for_function("() => location.hash.includes('page=1')")
    page.locator("#feature-list button").nth(7).click()
    page.wait_for_function("() => document.querySelectorAll('#feature-list [aria-current]').length === 1")
    again = open_page(page_file, "#" + page.url.partition("#")[2])
    ready(again)
    assert again.text_content("#feature-name") == page.text_content("#feature-name")
    assert rows(again, "#feature-list") == rows(page, "#feature-list")
    assert again.input_value("#feature-order") == "density"


@pytest.mark.parametrize(
    "link",
    ["feature=9:9", "feature=0:99999", "feature=x", "label=no%3A+label", "page=999", "autoencoder=7&features=lift"],
)
def test_a_link_to_what_is_not_there_shows_the_list(open_page: Open, page_file: Path, link: str) -> None:
    page = open_page(page_file, f"#tab=feature&{'features=interest&' if 'features' not in link else ''}{link}")
    ready(page)
    assert page.locator("#feature-list tr").count() >= 1
    assert page.text_content("#feature-facts")


def test_the_keyboard_is_enough(open_page: Open, page_file: Path) -> None:
    page = open_page(page_file)
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowLeft")
    ready(page)
    assert page.evaluate("document.activeElement.id") == "tab-feature"
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.dataset.key !== undefined"):
            break
    page.keyboard.press("Tab")
    key = page.evaluate("document.activeElement.dataset.key")
    page.keyboard.press("Enter")
    ready(page, f"feature {key}")
    assert page.evaluate("document.activeElement.dataset.key") == key
    assert page.evaluate("document.activeElement.getAttribute('aria-current')") == "true"
    page.keyboard.press("n")
    page.wait_for_function("key => document.body.dataset.ready !== `feature ${key}`", arg=key)
    page.keyboard.press("p")
    ready(page, f"feature {key}")


def test_everything_has_a_name_and_can_be_read(open_page: Open, page_file: Path) -> None:
    page = open_page(page_file, "#tab=feature")
    ready(page)
    unnamed = page.evaluate(
        """[...document.querySelectorAll('#feature-page :is(button:not([hidden]), input, select, canvas, a)')].filter(
            it => !(it.ariaLabel || it.textContent.trim() || it.closest('label')?.textContent.trim())).length"""
    )
    assert unnamed == 0
    found: list[list[str]] = page.evaluate(
        """[...document.querySelectorAll('#feature-page :is(td, th, p, button, h2, h3, h4, a, summary)')].map(it => {
            let at = it;
            while (at && getComputedStyle(at).backgroundColor === 'rgba(0, 0, 0, 0)') at = at.parentElement;
            return [getComputedStyle(it).color, at ? getComputedStyle(at).backgroundColor : 'rgb(255, 255, 255)'];
        })"""
    )
    for ink, back in {tuple(pair) for pair in found if "0.3" not in pair[0]}:
        high, low = sorted((light(ink), light(back)), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, back)


def light(color: str) -> float:
    parts = [int(it) / 255 for it in color.removeprefix("rgb(").rstrip(")").split(",")[:3]]
    linear = [it / 12.92 if it <= 0.03928 else ((it + 0.055) / 1.055) ** 2.4 for it in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">\u202egnp.exe"


def test_hostile_texts_and_labels_are_shown_as_text(open_page: Open, run: Path, sae: Path, tmp_path: Path) -> None:
    text = HOSTILE + " word" * 300 + HOSTILE
    (tmp_path / "texts.jsonl").write_text(json.dumps({"id": HOSTILE, "text": text}) + "\n")
    layertap.extract(
        dataset_path=tmp_path / "texts.jsonl",
        model_path=run.parent / "model",
        output_dir=tmp_path / "out",
        checkpointing=False,
    )
    length = len(layertap.ActivationDataset(tmp_path / "out")[0])

    def table_of(_dataset: ActivationDataset, autoencoder: Autoencoder, tap: Tap) -> FeatureTable:
        count = autoencoder.features
        return FeatureTable(
            tap=tap,
            tokens=length,
            samples=1,
            active=np.full(count, 90),
            sums=np.full(count, 90.0),
            edges=np.array([0.5, 2.0]),
            histogram=np.full((count, 1), 90),
            groups=(LabelGroup(HOSTILE, (HOSTILE, "other")),),
            label_tokens={HOSTILE: np.array([100, length - 100])},
            label_active={HOSTILE: np.tile([80, 10], (count, 1))},
            top_samples=np.zeros((count, 1), np.int64),
            top_tokens=np.full((count, 1), length - 1),
            top_values=np.ones((count, 1), np.float32),
        )

    config = ViewConfig(path=str(tmp_path / "out"), out=str(tmp_path / "page.html"), sae=(str(sae),))
    write_page(config, count=table_of)
    page = open_page(tmp_path / "page.html", "#tab=feature")
    ready(page)
    page.wait_for_selector("#tops article")
    assert page.title() != "owned"
    assert page.locator("img").count() == 0
    for place in ("#feature-list", "#answers", "#tops h4", "#tops .tokens"):
        said = page.locator(place).first.text_content() or ""
        assert "<script>" in said or "<img src=x" in said, place
        assert "\u202e" not in said, place
    assert "\\u202e" in (page.text_content("#tops h4") or "")
    assert (page.text_content("#tops .tokens") or "").startswith("… ")
    assert page.locator("#tops .tokens .chosen").count() == 1


def test_it_can_be_printed(open_page: Open, page_file: Path, run: Path, table: FeatureTable) -> None:
    page = open_page(page_file, "#tab=feature")
    ready(page)
    about_cells(page, table, run)
    assert page.locator("#tops article").count() > 4 == page.locator("#tops article:visible").count()
    page.emulate_media(media="print")
    assert page.locator("#tops article").count() == page.locator("#tops article:visible").count()
    assert page.is_hidden("#run-page")
    assert page.is_hidden("#sample-page")
    assert page.is_hidden("#feature-controls")
    assert page.is_hidden("#feature-choice .hint")
    assert page.is_visible("#tops canvas")
    assert page.evaluate("getComputedStyle(document.querySelector('#feature-choice .scroll')).maxHeight") == "none"


def test_thousands_of_features_stay_quick(open_page: Open, run: Path, tmp_path: Path) -> None:
    """This counts what is drawn, because the time depends on the machine."""
    folder = write_autoencoder(tmp_path / "sae")
    rng = np.random.default_rng(1)
    count = 8192
    shapes = {"W_enc": (64, count), "W_dec": (count, 64), "b_enc": (count,), "b_dec": (64,)}
    save_file(
        {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()},
        folder / "sae_weights.safetensors",
    )
    assert main(["view", str(run), "--out", str(tmp_path / "page.html"), "--sae", str(folder)]) == 0
    page = open_page(tmp_path / "page.html", "#tab=feature")
    ready(page)
    assert page.locator("#feature-list tr").count() == 51
    assert "of 8,192 features" in (page.text_content("#feature-count") or "")
    spent = page.evaluate(
        "async () => { const begun = performance.now();"
        " await change({ features: { ...state.features, order: 'lift' } }); return performance.now() - begun; }"
    )
    size = (tmp_path / "page.html").stat().st_size
    loaded = page.evaluate("performance.timing.domComplete - performance.timing.navigationStart")
    print(f"8,192 features: {size / 1e6:.1f} MB, loaded in {loaded} ms, ordered by lift in {spent:.0f} ms")
    assert math.isfinite(spent)
