"""The page of `layertap view` in a real browser: it draws stored values, and its controls work."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import numpy as np
import pytest
from playwright.sync_api import Page
from safetensors.numpy import save_file

import layertap
from layertap.cli import main
from layertap.core.columns import token_columns
from layertap.core.sample import Sample
from layertap.core.taps import Tap
from layertap.objects import open_store
from layertap.sae.load import load_autoencoder
from layertap.shards.form import ShardFormat
from layertap.shards.manifest import Manifest, fingerprint_of
from layertap.shards.writer import ShardWriter

Open = Callable[..., Page]
ARC = ["#000000", "#0074D9", "#FF4136", "#2ECC40", "#FFDC00", "#AAAAAA", "#F012BE", "#FF851B", "#7FDBFF", "#870C25"]
RISING = ["440154", "482878", "3e4989", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725"]
CELL = 22


def ready(page: Page, begins: str) -> None:
    page.wait_for_selector(f'body[data-ready^="{begins}"]')


def told(page: Page) -> dict[str, str]:
    """Return what the address says."""
    return {name: values[0] for name, values in parse_qs(page.url.partition("#")[2]).items()}


def pixel(page: Page, canvas: int, x: int, y: int) -> tuple[int, ...]:
    drawing = "document.querySelectorAll('#grids canvas')[canvas].getContext('2d')"
    script = f"([canvas, x, y]) => [...{drawing}.getImageData(x, y, 1, 1).data]"
    return tuple(page.evaluate(script, [canvas, x, y])[:3])


def rgb(text: str) -> tuple[int, ...]:
    return tuple(int(text.lstrip("#")[at : at + 2], 16) for at in (0, 2, 4))


def rising(values: np.ndarray) -> Callable[[float], tuple[int, ...]]:
    """Return the colour of a size among these, from the legend of the page."""
    ordered = np.sort(values)
    low, high = (float(ordered[min(len(ordered) - 1, math.floor(share * len(ordered)))]) for share in (0.02, 0.98))

    def color(value: float) -> tuple[int, ...]:
        share = min(1.0, max(0.0, math.log(value / low) / math.log(high / low)))
        place = share * (len(RISING) - 1)
        below = min(len(RISING) - 2, int(place))
        ends = zip(rgb(RISING[below]), rgb(RISING[below + 1]), strict=True)
        return tuple(round(a + (place - below) * (b - a)) for a, b in ends)

    return color


@pytest.mark.parametrize("width", [1280, 390])
def test_it_opens_at_any_width_without_a_complaint(
    open_page: Open, page_file: Path, width: int, keep: Callable[[Page, str], None]
) -> None:
    page = open_page(page_file, width=width)
    assert page.text_content("#facts td:nth-child(2)")
    keep(page, f"run-{width}")
    page.click("#tab-sample")
    ready(page, "sample")
    keep(page, f"sample-{width}")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#grids canvas").count() > 2
    assert page.is_hidden("#run-page")


def test_a_cell_has_its_colour_and_that_of_its_value(open_page: Open, page_file: Path, run: Path) -> None:
    sample = layertap.ActivationDataset(run)[3]
    page = open_page(page_file, f"#tab=sample&sample={sample.sample_idx}&site=residual&layer=2&value=norm")
    norms = np.array([float(f"{norm:.3g}") for norm in sample.norms(2, "residual").tolist()])
    color, labels = rising(norms), sample.labels
    for number, ((pair, side), grid) in enumerate(labels.grids().items()):
        assert grid is not None
        which = (labels.example == (-2 if pair == "test" else pair)) & (labels.side == {"input": 1, "output": 2}[side])
        for token in np.flatnonzero(which & (labels.cells == 1))[:: max(1, len(grid))].tolist():
            row, col = int(labels.row[token]), int(labels.col[token])
            assert pixel(page, number, col * CELL + 3, row * CELL + 3) == rgb(ARC[grid[row][col]])
            found = pixel(page, number, col * CELL + CELL // 2, row * CELL + CELL // 2)
            assert max(abs(a - b) for a, b in zip(found, color(norms[token]), strict=True)) <= 1


def test_undoing_the_augmentation_gives_the_task(open_page: Open, page_file: Path, run: Path) -> None:
    dataset = layertap.ActivationDataset(run)
    sample = next(one for one in dataset if one.origin["augmentation"]["rotations"] % 2)
    tasks = map(json.loads, (run.parent / "tasks.jsonl").read_text().splitlines())
    task = next(task for task in tasks if task["task_id"] == sample.task_id)
    page = open_page(page_file, f"#tab=sample&sample={sample.sample_idx}")
    before = page.get_attribute("#grids canvas", "aria-label")
    page.check("#undo")
    page.wait_for_function("before => document.querySelector('#about').textContent.includes('undone')", arg=before)
    grids = [pair[side] for pair in task["train"] for side in ("input", "output")]
    for number, grid in enumerate(grids):
        for row, line in enumerate(grid):
            for col, color in enumerate(line):
                assert pixel(page, number, col * CELL + 3, row * CELL + 3) == rgb(ARC[color])


def test_controls_do_what_they_say(open_page: Open, page_file: Path, run: Path) -> None:
    dataset = layertap.ActivationDataset(run)
    page = open_page(page_file, "#tab=sample")
    ready(page, "sample 0 residual 0 norm")
    page.locator("#layer").fill("3")
    ready(page, "sample 0 residual 3 norm")
    assert page.text_content("#layer-name") == "3"
    page.check('#sites input[value="mlp"]')
    ready(page, "sample 0 mlp 3 norm")
    page.select_option("#value", "cosine")
    ready(page, "sample 0 mlp 3 cosine")
    page.click("#next")
    ready(page, "sample 1 mlp 3 cosine")
    assert told(page)["sample"] == str(dataset[1].sample_idx)
    page.select_option("#order", "tokens")
    lengths = [int(text.split(", ")[1].split()[0]) for text in page.locator("#sample option").all_text_contents()]
    assert lengths == sorted((len(sample) for sample in dataset), reverse=True)
    page.fill("#search", dataset[5].task_id)
    page.wait_for_function("count => document.querySelectorAll('#sample option').length < count", arg=len(dataset))
    assert all(dataset[5].task_id in text for text in page.locator("#sample option").all_text_contents())


def test_a_link_shows_the_same_again(open_page: Open, page_file: Path) -> None:
    page = open_page(page_file, "#tab=sample")
    page.check('#sites input[value="mlp"]')
    page.locator("#layer").fill("2")
    page.select_option("#value", "deviation")
    page.locator("#grids canvas").first.click(position={"x": 30, "y": 10})
    page.wait_for_function("() => !document.body.dataset.ready.endsWith(' -1')")
    again = open_page(page_file, "#" + page.url.partition("#")[2])
    ready(again, "sample")
    assert again.text_content("#detail-text") == page.text_content("#detail-text")
    assert "example 1 input, row 1, column 2" in (again.text_content("#detail-text") or "")


def test_the_keyboard_is_enough(open_page: Open, page_file: Path) -> None:
    page = open_page(page_file)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "tab-run"
    page.keyboard.press("ArrowRight")
    ready(page, "sample 0 residual 0")
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.tagName") == "CANVAS":
            break
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
        page.wait_for_timeout(50)
    assert "row 2, column 2" in (page.text_content("#detail-text") or "")
    page.keyboard.press("]")
    ready(page, "sample 0 residual 1")
    page.keyboard.press("n")
    ready(page, "sample 1 residual 1")
    page.keyboard.press("p")
    ready(page, "sample 0 residual 1")


def test_the_table_has_the_numbers_that_are_stored(open_page: Open, page_file: Path, run: Path) -> None:
    sample = layertap.ActivationDataset(run)[2]
    page = open_page(page_file, f"#tab=sample&sample={sample.sample_idx}&site=mlp&layer=1")
    page.click("#table-details summary")
    page.wait_for_selector("#token-table td")
    rows: list[list[str]] = page.evaluate(
        "[...document.querySelectorAll('#token-table tr')].map(row => [...row.children].map(cell => cell.textContent))"
    )
    head, body = rows[0], rows[1:]
    assert [int(row[1]) for row in body] == sample.token_ids.tolist()
    shown = [float(row[head.index("norm")].replace("−", "-")) for row in body]
    assert shown == [float(f"{norm:.3g}") for norm in sample.norms(1, "mlp").tolist()]


def test_text_can_be_read_on_its_colour(open_page: Open, page_file: Path) -> None:
    page = open_page(page_file, "#tab=sample")
    pairs: list[list[str]] = page.evaluate(
        "[...document.querySelectorAll('#prompt .token')].map(it => [it.style.color, it.style.backgroundColor])"
    )
    assert len(pairs) > 500

    def light(color: str) -> float:
        parts = [int(it) / 255 for it in color[4:-1].split(",")]
        linear = [it / 12.92 if it <= 0.03928 else ((it + 0.055) / 1.055) ** 2.4 for it in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for ink, back in {tuple(pair) for pair in pairs}:
        high, low = sorted((light(ink), light(back)), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, back)


HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">\u202egnp.exe"


def test_hostile_texts_are_shown_as_text(open_page: Open, run: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text(
        "".join(
            json.dumps({"id": f"{HOSTILE}{number}", "text": HOSTILE + " word" * number * 40}) + "\n"
            for number in range(3)
        )
    )
    layertap.extract(
        dataset_path=tmp_path / "texts.jsonl",
        model_path=run.parent / "model",
        output_dir=tmp_path / "out",
        checkpointing=False,
    )
    assert main(["view", str(tmp_path / "out"), "--out", str(tmp_path / "page.html")]) == 0
    page = open_page(tmp_path / "page.html", "#tab=sample")
    ready(page, "sample 0")
    assert page.title() != "owned"
    assert page.locator("img").count() == 0
    said = page.text_content("#about") or ""
    assert "<script>document.title='owned'</script>" in said
    assert "\u202e" not in said
    assert "\\u202e" in said
    assert "<img src=x" in (page.text_content("#prompt") or "")
    assert "\u202e" not in (page.text_content("#prompt") or "")


def test_a_feature_is_shown_at_its_layer(open_page: Open, run: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = {"W_enc": (64, 96), "W_dec": (96, 64), "b_enc": (96,), "b_dec": (64,)}
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(weights, tmp_path / "sae_weights.safetensors")
    told = {"architecture": "topk", "k": 8, "metadata": {"hook_name": "blocks.2.hook_resid_post"}}
    (tmp_path / "cfg.json").write_text(json.dumps(told))
    assert main(["view", str(run), "--out", str(tmp_path / "page.html"), "--sae", str(tmp_path)]) == 0
    page = open_page(tmp_path / "page.html", "#tab=sample&site=mlp&layer=0")
    feature = page.locator("#value option").last.get_attribute("value")
    assert feature is not None
    page.select_option("#value", feature)
    ready(page, f"sample 0 residual 2 {feature}")
    sample = layertap.ActivationDataset(run)[0]
    expected = load_autoencoder(tmp_path).encode(sample.activation(2, "residual"))[:, int(feature.split()[1])]
    page.click("#table-details summary")
    page.wait_for_selector("#token-table td")
    shown = page.locator("#token-table tr td:last-child").all_text_contents()
    assert [float(cell) for cell in shown] == pytest.approx([float(f"{value:.3g}") for value in expected], rel=0.0051)


def test_fifty_samples_of_24_layers_stay_under_20_mb(open_page: Open, tmp_path: Path) -> None:

    rng = np.random.default_rng(0)
    taps = {Tap(layer, "residual"): 8 for layer in range(24)}
    form = ShardFormat(taps, np.dtype(np.float32), compress=True, name="safetensors")

    def sample(index: int) -> Sample:
        ids = rng.integers(0, 50_000, 1432, np.int32)
        activations = {tap: rng.standard_normal((1432, 8), np.float32) * 9 for tap in taps}
        return Sample(index, f"task {index}", "text", token_columns(ids, frozenset()), activations=activations)

    identity: dict[str, Any] = {}
    manifest = Manifest(
        fingerprint=fingerprint_of(identity),
        identity=identity,
        config={},
        worker_id=0,
        model_path="none",
        model_type="qwen2",
        special_ids=(),
        format="safetensors",
        taps=taps,
        storage_dtype="float32",
    )
    writer = ShardWriter(open_store(str(tmp_path / "run")), manifest, form, lambda _: None)
    writer.commit([sample(index) for index in range(50)], {}, complete=True)
    assert main(["view", str(tmp_path / "run"), "--out", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").stat().st_size < 20e6
    page = open_page(tmp_path / "page.html", "#tab=sample")
    ready(page, "sample 0")
    assert page.locator("#sample option").count() == 50
    milliseconds = page.evaluate("performance.timing.domComplete - performance.timing.navigationStart")
    print(f"{(tmp_path / 'page.html').stat().st_size / 1e6:.1f} MB, loaded in {milliseconds} ms")


def test_screenshots_are_kept_where_asked() -> None:
    folder = os.environ.get("LAYERTAP_SCREENSHOTS")
    if folder is None:
        pytest.skip("LAYERTAP_SCREENSHOTS names no folder")
    assert {path.stem for path in Path(folder).glob("*.png")} >= {"run-1280", "sample-1280", "run-390", "sample-390"}
