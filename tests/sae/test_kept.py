"""What was counted is kept beside the shards, found again, and never taken for something else."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from autoencoders import TAP, make_autoencoder
from clouds import BUCKET
from fakes.gcs import FakeGcs
from runs import extract_some, finished, out, small_run
from safetensors import safe_open

import layertap
from layertap.check.verify import verify
from layertap.config.extract import ExtractConfig
from layertap.pipeline.run import extract
from layertap.sae import count, kept
from layertap.sae.count import count_features
from layertap.sae.table import FeatureTable


def nothing_said(message: str) -> None:
    raise AssertionError(message)


def tokens_counted(dataset: layertap.ActivationDataset, **asked: object) -> tuple[FeatureTable, list[int]]:
    """Return the table, and how far the walk was at its beginning and after each step."""
    shown: list[int] = []
    asked = {"say": nothing_said} | asked
    table = count_features(dataset, make_autoencoder(), TAP, show=lambda done, _: shown.append(done), **asked)
    return table, shown


def require_equal(found: FeatureTable, expected: FeatureTable) -> None:
    for field in dataclasses.fields(FeatureTable):
        np.testing.assert_equal(getattr(found, field.name), getattr(expected, field.name), err_msg=field.name)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "features").iterdir())}


def place(folder: Path) -> list[int]:
    """How far the only walk with kept counts is: whole shards, and steps of the next one."""
    (path,) = (folder / "features").glob("*.safetensors")
    with safe_open(path, "numpy") as file:
        return json.loads(file.metadata()["layertap"])["place"]


@pytest.fixture
def config(few_tasks: Path, tiny_model: Path, tmp_path: Path) -> ExtractConfig:
    return small_run(few_tasks, tiny_model, tmp_path, format="safetensors")


@pytest.fixture
def run(config: ExtractConfig) -> Path:
    finished(config)
    return out(config)


def test_a_second_walk_reads_nothing_again(run: Path) -> None:
    dataset = layertap.ActivationDataset(run)
    first, shown = tokens_counted(dataset)
    assert shown[0] == 0
    assert shown[-1] == dataset.tokens
    second, shown = tokens_counted(dataset)
    assert not shown
    require_equal(second, first)


def test_it_needs_no_jax_where_all_is_counted(run: Path, tmp_path: Path) -> None:
    count_features(layertap.ActivationDataset(run), make_autoencoder(), TAP)
    program = tmp_path / "again.py"
    program.write_text(
        "import sys, layertap\n"
        "from autoencoders import TAP, make_autoencoder\n"
        "from layertap.sae.count import count_features\n"
        f"count_features(layertap.ActivationDataset({str(run)!r}), make_autoencoder(), TAP)\n"
        "assert 'jax' not in sys.modules\n"
    )
    subprocess.run([sys.executable, program], check=True, env=environment())


def environment() -> dict[str, str]:
    paths = [*sys.path, str(Path(__file__).parents[1] / "support")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


@pytest.mark.whole
def test_shards_that_came_later_are_added(config: ExtractConfig) -> None:
    extract_some(config, 3)
    part = layertap.ActivationDataset(out(config))
    tokens_counted(part)
    extract(config)
    dataset = layertap.ActivationDataset(out(config))
    assert len(dataset.shards) > 3
    added, shown = tokens_counted(dataset)
    assert shown[0] == part.tokens
    grown = files(out(config))
    shutil.rmtree(out(config) / "features")
    require_equal(added, tokens_counted(dataset)[0])
    assert files(out(config)) == grown


@pytest.mark.whole
def test_a_run_goes_on_beside_it_and_is_sound(config: ExtractConfig) -> None:
    extract_some(config, 3)
    tokens_counted(layertap.ActivationDataset(out(config)))
    extract(config)
    assert verify(out(config)).sound
    assert (out(config) / "features").is_dir()
    assert layertap.ActivationDataset(out(config)).complete


def test_another_autoencoder_tap_or_choice_has_another_file(run: Path) -> None:
    dataset = layertap.ActivationDataset(run)
    autoencoder = make_autoencoder()
    count_features(dataset, autoencoder, TAP)
    count_features(dataset, autoencoder, TAP._replace(layer=1))
    count_features(dataset, autoencoder, TAP, exclude=())
    count_features(dataset, make_autoencoder("jumprelu"), TAP)
    weights = dict(autoencoder.weights)
    weights["b_enc"] = weights["b_enc"] + np.eye(1, len(weights["b_enc"]), dtype=np.float32)[0]
    count_features(dataset, dataclasses.replace(autoencoder, weights=weights), TAP)
    assert len(files(run)) == 5


@pytest.mark.whole
def test_other_shards_are_counted_again(run: Path, few_tasks: Path, tiny_model: Path, tmp_path: Path) -> None:
    tokens_counted(layertap.ActivationDataset(run))
    other = small_run(few_tasks, tiny_model, tmp_path / "other", format="safetensors", random_seed=7)
    finished(other)
    shutil.copytree(run / "features", out(other) / "features")
    _, shown = tokens_counted(layertap.ActivationDataset(out(other)))
    assert shown[0] == 0


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "header"])
def test_what_is_damaged_is_counted_again(run: Path, damage: str) -> None:
    dataset = layertap.ActivationDataset(run)
    first, _ = tokens_counted(dataset)
    (path,) = (run / "features").iterdir()
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    path.write_bytes({"cut": whole[:-1], "flipped": flipped, "empty": b"", "header": b"\xff" * 100}[damage])
    said: list[str] = []
    second, shown = tokens_counted(dataset, say=said.append)
    assert "counted again" in said[0]
    assert str(path) in said[0]
    assert shown[0] == 0
    require_equal(second, first)
    assert path.read_bytes() == whole


def test_it_is_counted_where_nothing_can_be_written(run: Path) -> None:
    dataset = layertap.ActivationDataset(run)
    expected, _ = tokens_counted(dataset)
    shutil.rmtree(run / "features")
    (run / "features").write_text("in the way")
    said: list[str] = []
    found, _ = tokens_counted(dataset, say=said.append)
    require_equal(found, expected)
    (message,) = said
    assert "not kept" in message


def test_a_bucket_keeps_it_too(run: Path, gcs: FakeGcs) -> None:
    for path in run.rglob("*"):
        if path.is_file():
            gcs.put(BUCKET, f"run/{path.relative_to(run)}", path.read_bytes())
    local, _ = tokens_counted(layertap.ActivationDataset(run))
    url = f"gs://{BUCKET}/run"
    far, _ = tokens_counted(layertap.ActivationDataset(url))
    require_equal(far, local)
    again, shown = tokens_counted(layertap.ActivationDataset(url))
    assert not shown
    require_equal(again, local)


def test_many_workers_have_it_beside_their_folders(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "all" / "tpu_0")
    tokens_counted(layertap.ActivationDataset(tmp_path / "all"))
    assert len(files(tmp_path / "all")) == 1
    assert not (tmp_path / "all" / "tpu_0" / "features").exists()


@pytest.mark.whole
def test_killed_walks_end_with_the_same_bytes(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(count, "_MOST", 64)
    tokens_counted(layertap.ActivationDataset(run))
    undisturbed = files(run)
    shutil.rmtree(run / "features")
    program = tmp_path / "walk.py"
    program.write_text(
        "import sys, time, layertap\n"
        "from autoencoders import TAP, make_autoencoder\n"
        "from layertap.sae import count, kept\n"
        "count._MOST, kept._SECONDS = 64, 0.0\n"
        "def show(done, total):\n"
        "    print(done, flush=True)\n"
        "    time.sleep(0.02)\n"
        f"count.count_features(layertap.ActivationDataset({str(run)!r}), make_autoencoder(), TAP, show=show)\n"
    )
    places = [[0, 0]]
    for kills_after in (4, 9, 5):
        process = subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, text=True, env=environment())
        assert process.stdout is not None
        assert all(process.stdout.readline() for _ in range(kills_after))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        places.append(place(run))
    assert places == sorted(places)
    assert len({tuple(own) for own in places}) == 4
    assert files(run) != undisturbed
    monkeypatch.setattr(kept, "_SECONDS", 0.0)
    tokens_counted(layertap.ActivationDataset(run))
    assert files(run) == undisturbed
