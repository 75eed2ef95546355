"""A model that computes NaN, as a diverged fine-tune does: the run stops, or keeps them."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import changed, manifest, out
from safetensors.numpy import load_file, save_file

import layertap
from layertap.check.verify import verify
from layertap.commands import stats
from layertap.config.extract import ExtractConfig
from layertap.config.upload import StatsConfig
from layertap.errors import StorageError
from layertap.pipeline.run import extract

WEIGHT = "model.layers.2.mlp.down_proj.weight"


@pytest.fixture(scope="session")
def diverged_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a NaN in one weight of layer 2."""
    folder = tmp_path_factory.mktemp("diverged") / "model"
    shutil.copytree(tiny_model, folder)
    weights = {name: values.copy() for name, values in load_file(folder / "model.safetensors").items()}
    weights[WEIGHT][0, 0] = np.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def diverged(config: ExtractConfig, diverged_model: Path) -> ExtractConfig:
    return changed(config, model_path=str(diverged_model), layers_to_extract=(1, 2), max_tasks=2)


@pytest.fixture
def kept(diverged: ExtractConfig) -> ExtractConfig:
    return changed(diverged, on_nonfinite="keep", certify=2)


def no_constants(text: str) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def json_files(folder: Path) -> Iterator[Any]:
    for path in folder.rglob("*.json*"):
        for line in [path.read_text()] if path.suffix == ".json" else path.read_text().splitlines():
            yield no_constants(line)


@pytest.mark.parametrize("certify", [0, 2])
@pytest.mark.parametrize("format_", ["pickle", "safetensors"])
def test_the_run_stops_and_names_sample_layer_site_and_token(
    diverged: ExtractConfig, certify: int, format_: str
) -> None:
    with pytest.raises(
        StorageError, match=r"^task \S+, sample \d+, layer 2, residual, token 0: the activation has a NaN"
    ):
        extract(changed(diverged, certify=certify, format=format_))
    assert not list(out(diverged).rglob("shard_*"))
    assert not (out(diverged) / "metadata.json").exists()


def test_layers_below_are_sound(diverged: ExtractConfig) -> None:
    extract(changed(diverged, layers_to_extract=(0, 1)))
    assert verify(out(diverged)).sound


@pytest.mark.parametrize("format_", ["pickle", "safetensors"])
def test_kept_they_are_counted_and_no_json_has_a_nan(kept: ExtractConfig, format_: str, capsys: Any) -> None:
    summary = extract(changed(kept, format=format_))
    told = manifest(kept)
    assert told["totals"]["nonfinite"] == told["totals"]["tokens"] == sum(line["nonfinite"] for line in told["shards"])
    assert f"{summary.manifest.tokens} activations with a NaN or an infinity" in summary.describe()
    assert len(list(json_files(out(kept)))) > 2
    assert list(json_files(Path(kept.checkpoint_dir)))
    report = verify(out(kept))
    assert report.sound, report.findings
    assert report.to_json()["nonfinite"] == told["totals"]["tokens"]
    stats(StatsConfig(paths=(str(out(kept)),), json=True))
    at_layer = {row["layer"]: row for row in no_constants(capsys.readouterr().out)}
    assert (at_layer[1]["count"], at_layer[2]["count"]) == (told["totals"]["tokens"], 0)


def test_the_certificate_leaves_them_out_and_says_so(kept: ExtractConfig) -> None:
    summary = extract(kept)
    certificate = manifest(kept)["certificate"]
    sound, broken = certificate["taps"]
    assert 0.9 < sound["cosine_min"] < 1
    assert "nonfinite" not in sound
    assert broken["nonfinite"] == certificate["tokens"]
    assert broken["cosine_min"] is broken["relative_error_mean"] is None
    assert "certified against float32 on 2 prompts: cosine at least 0.9" in summary.describe()


def test_a_run_that_was_stopped_goes_on_with_keep(diverged: ExtractConfig, tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        extract(diverged)
    extract(changed(diverged, on_nonfinite="keep"))
    assert verify(out(diverged)).sound


def test_batches_hand_them_out_unless_they_are_excluded(kept: ExtractConfig) -> None:
    extract(changed(kept, format="safetensors"))
    dataset = layertap.ActivationDataset(out(kept))
    assert all(np.isnan(batch.activations.astype(np.float32)).any() for batch in dataset.batches(512, layers=[2]))
    assert list(dataset.batches(512, layers=[2], exclude={"nonfinite"})) == []
    assert sum(map(len, dataset.batches(512, layers=[1], exclude={"nonfinite"}))) == dataset.tokens
