"""Each script of examples/ as a user starts it: in its own process, in an empty folder.

`--quick` makes a script small. The tests do not judge what a script finds out (docs/examples.md has
the figures of full runs). It has to come to its end, print what it promises, and leave the files
that it names.
"""

import ast
import importlib
import re
import subprocess
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from commands import ROOT, start
from safetensors.numpy import load_file
from view_pages import Page

import layertap
from layertap.core.taps import Tap
from layertap.sae.count import count_features
from layertap.sae.load import load_autoencoder

FOLDED = "sae/sae_weights.safetensors"
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))


def ended(process: "subprocess.Popen[str]", timeout: float = 280) -> str:
    """Return what the process printed. It must succeed."""
    output, errors = process.communicate(timeout=timeout)
    assert process.returncode == 0, errors[-4000:]
    return output


def begin(script: str, folder: Path, *flags: str) -> "subprocess.Popen[str]":
    return start([ROOT / "examples" / script, *flags], folder)


def explained(output: str) -> list[float]:
    """The shares of the variance, in the order in which they were printed."""
    return [float(share) for share in re.findall(r"([\d.]+)% explained", output)]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_is_a_notebook_in_percent_format_that_the_index_names(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    assert text.startswith("# %% [markdown]\n# # ")
    cells = [line for line in text.splitlines() if line.startswith("# %%")]
    assert set(cells) == {"# %%", "# %% [markdown]"}
    assert '"--quick" in sys.argv' in text
    ast.parse(text)
    for page in ("examples/README.md", "docs/examples.md"):
        assert script.name in (ROOT / page).read_text(encoding="utf-8"), page


@pytest.fixture(scope="module")
def train_jax(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What an undisturbed run of train_jax.py printed, and its folder."""
    folder = tmp_path_factory.mktemp("train_jax")
    return ended(begin("train_jax.py", folder, "--quick")), folder


@pytest.mark.whole
def test_train_jax(train_jax: tuple[str, Path]) -> None:
    output, folder = train_jax
    shares = explained(output)
    assert shares[-1] > shares[0] + 10
    assert re.search(r"\d+ of 128 features dead", output)
    off = re.search(r"its largest difference is (\S+)", output)
    assert off is not None
    assert float(off[1]) < 1e-4
    assert {name: array.shape for name, array in load_file(folder / FOLDED).items()} == {
        "W_enc": (64, 128),
        "b_enc": (128,),
        "W_dec": (128, 64),
        "b_dec": (64,),
    }


@pytest.mark.whole
def test_train_jax_takes_a_stored_run_and_view_opens_what_it_saves(tmp_path: Path) -> None:
    ended(start(["-m", "layertap", "demo", "--num_tasks", "2"], tmp_path))
    output = ended(begin("train_jax.py", tmp_path, "--quick", "--run", "layertap-demo/activations"))
    assert explained(output)[-1] > explained(output)[0] + 10
    assert not (tmp_path / "model").exists()
    ended(
        start(["-m", "layertap", "view", "layertap-demo/activations", "--sae", "sae", "--out", "page.html"], tmp_path)
    )
    assert 'id="features-0"' in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.whole
def test_train_jax_goes_on_where_it_was_killed(train_jax: tuple[str, Path], tmp_path: Path) -> None:
    process = begin("train_jax.py", tmp_path, "--quick")
    while not (tmp_path / "sae.msgpack").exists() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert not (tmp_path / FOLDED).exists()
    assert "continuing after step" in ended(begin("train_jax.py", tmp_path, "--quick"))
    undisturbed = load_file(train_jax[1] / FOLDED)
    for name, array in load_file(tmp_path / FOLDED).items():
        np.testing.assert_array_equal(array, undisturbed[name], err_msg=name)


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_train_jax_in_full(tmp_path: Path) -> None:
    assert explained(ended(begin("train_jax.py", tmp_path), timeout=900))[-1] > 95


@pytest.mark.whole
def test_storage_dtypes_tells_what_each_costs(tmp_path: Path) -> None:
    output = ended(begin("storage_dtypes.py", tmp_path, "--quick"))
    rows = [line.strip("| ").split(" | ") for line in output.splitlines() if line.startswith("| ")]
    errors, shares = rows[:5], rows[5:]
    names = ["float32", "bfloat16", "float16", "float8_e4m3", "int8"]
    assert [row[0] for row in errors] == [row[0] for row in shares] == names
    means = {row[0]: float(row[2].partition(",")[0]) for row in errors}
    assert means["float32"] == 0 < means["float16"] < means["bfloat16"] < means["int8"] < means["float8_e4m3"]
    assert all(float(share) == pytest.approx(float(shares[0][2]), abs=0.01) for _, _, share in shares)


@pytest.fixture(scope="module")
def arc(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What a small run of arc_features.py printed, and its folder. The script first makes its
    model.
    """
    folder = tmp_path_factory.mktemp("arc")
    return ended(begin("arc_features.py", folder, "--quick")), folder


@pytest.mark.whole
def test_arc_features_tells_what_fires_where_in_both_models(arc: tuple[str, Path]) -> None:
    output, folder = arc
    assert re.findall(r"^(\w+): 3,240 cells, layer 2, width 256$", output, re.MULTILINE) == ["untrained", "trained"]
    tables = re.findall(r"^\| feature \|", output, re.MULTILINE)
    assert len(tables) == 2
    rows = re.findall(r"^\| \d+ \| ([\d,]+) \| ([\d,]+) \S.*? \((\d+)%\) \|", output, re.MULTILINE)
    assert rows
    for fires, both, share in rows:
        assert int(share) == pytest.approx(100 * int(both.replace(",", "")) / int(fires.replace(",", "")), abs=0.51)
    assert (folder / "arc_features.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.whole
def test_arc_features_ends_in_its_page(arc: tuple[str, Path]) -> None:
    output, folder = arc
    assert "arc_features.html: 20 samples of activations_trained" in output
    assert "64 features, 40 of them drawn in full" in output
    page = Page(folder / "arc_features.html")
    autoencoder = load_autoencoder(folder / "sae_trained")
    table = count_features(layertap.ActivationDataset(folder / "activations_trained"), autoencoder, Tap(2, "residual"))
    listed = page.listed(0)
    np.testing.assert_array_equal(listed.counts[:, 0], table.active[listed.numbers[:, 0]])
    assert {"colour", "row", "grid"} <= {group["name"] for group in listed.header["groups"]}


@pytest.mark.whole
def test_the_model_of_the_puzzles_is_what_transformers_reads(
    arc: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    arc_model = importlib.import_module("arc_model")
    folder = arc[1] / "trained"
    token_ids = np.random.default_rng(0).integers(0, 300, (2, 110))
    weights = load_file(folder / "model.safetensors")
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        ours = np.asarray(arc_model.logits({name: jnp.asarray(array) for name, array in weights.items()}, token_ids))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        theirs = model(torch.tensor(token_ids)).logits.numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.whole
def test_training_and_extraction_of_puzzles_see_the_same_tokens(
    arc: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.chdir(arc[1])
    arc_model = importlib.import_module("arc_model")
    prompts = arc_model.make_prompts(arc_model.make_puzzles(60, seed=3), Path("trained"))
    for sample in layertap.ActivationDataset("activations_trained"):
        shown = prompts.token_ids[sample.sample_idx]
        np.testing.assert_array_equal(shown[sample.column("positions")], sample.token_ids)


def test_a_feature_gets_the_property_that_it_was_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    arc_features = importlib.import_module("arc_features")
    rng = np.random.default_rng(0)
    grids = [rng.integers(0, 10, (3, 3)) for _ in range(400)]
    empty = np.full((3, 3), -1)
    puzzles = [
        arc_features.Puzzle("frame", {(0, side): cells for side, cells in (("input", empty), ("output", grid))})
        for grid in grids
    ]
    described = [dict(arc_features.describe(puzzle, 0, "output")) for puzzle in puzzles]
    properties = {name: np.concatenate([one[name].ravel() for one in described]) for name in described[0]}
    planted = ["colour 4", "before colour 7", "column 1", "corner", "inside the grid", "alone in its colour"]
    fired = np.stack([properties[name] for name in planted], axis=1).astype(np.float32)
    found = arc_features.find_meanings(arc_features.Cells(fired, properties, np.repeat(np.arange(400), 9), []))
    assert {one.feature: one.name for one in found} == dict(enumerate(planted))
    corner = found[[one.name for one in found].index("corner")]
    assert (corner.both, corner.fires, corner.having, corner.cells) == (800, 800, 800, 1800)
    assert (corner.precision, corner.recall, corner.phi) == (1.0, 1.0, pytest.approx(1.0))
    assert corner.lift == pytest.approx(9 / 4)


def test_the_description_of_a_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    arc_features = importlib.import_module("arc_features")
    question, answer = np.array([[1, 1, 0], [0, 2, 0]]), np.array([[1, 1, 0], [0, 3, 0]])
    puzzle = arc_features.Puzzle("repaint", {(0, "input"): question, (0, "output"): answer})
    told = {name: mask.astype(int).tolist() for name, mask in arc_features.describe(puzzle, 0, "output")}
    assert told["the rule's colour"] == [[0, 0, 0], [0, 1, 0]]
    assert told["before the rule's colour"] == [[0, 0, 0], [1, 0, 0]]
    assert told["puzzle: repaint"] == told["puzzle: rule's colour 3"] == [[1, 1, 1], [1, 1, 1]]
    assert told["in an object of several cells"] == [[1, 1, 0], [0, 0, 0]]
    assert told["alone in its colour"] == [[0, 0, 0], [0, 1, 0]]
    assert told["background beside background"] == [[0, 0, 1], [0, 0, 1]]
    assert told["changed by the rule"] == [[0, 0, 0], [0, 1, 0]]
    assert told["before colour 0"] == [[0, 1, 0], [0, 1, 0]]
    assert told["corner"] == [[1, 0, 1], [1, 0, 1]]
    assert told["inside the grid"] == [[0, 0, 0], [0, 0, 0]]
    assert told["first pair"] == told["output"] == [[1, 1, 1], [1, 1, 1]]


@pytest.mark.proof  # twenty minutes
@pytest.mark.timeout(3600)
def test_arc_features_in_full(tmp_path: Path) -> None:
    output = ended(begin("arc_features.py", tmp_path), timeout=3500)
    (row,) = re.findall(r"^\| all \| 300 \| (.+) \|$", output, re.MULTILINE)
    solved, cells, repeated, usual = (float(share.removesuffix("%")) for share in row.split(" | "))
    assert cells > max(repeated, usual) + 10
    assert solved > 30
