"""Files for Neuronpedia hold the table's numbers, and the tokens and values around its places.

That SAEDashboard's own classes read them is in tests/contract/test_neuronpedia.py.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from autoencoders import TAP, make_autoencoder
from runs import finished, out, small_run

import layertap
from layertap.core.columns import FIRST, SINK
from layertap.sae import neuronpedia
from layertap.sae.count import count_features
from layertap.sae.neuronpedia import write_neuronpedia
from layertap.sae.table import FeatureTable


@pytest.fixture
def dataset(few_tasks: Path, tiny_model: Path, tmp_path: Path) -> layertap.ActivationDataset:
    config = small_run(few_tasks, tiny_model, tmp_path, format="safetensors")
    finished(config)
    return layertap.ActivationDataset(out(config))


@pytest.fixture
def table(dataset: layertap.ActivationDataset) -> FeatureTable:
    return count_features(dataset, make_autoencoder(), TAP)


def read(paths: tuple[Path, ...]) -> list[dict[str, Any]]:
    return [feature for path in paths for feature in json.loads(path.read_text())["features"]]


def test_features_are_those_of_the_table(
    dataset: layertap.ActivationDataset, table: FeatureTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neuronpedia, "_FEATURES", 16)
    paths = write_neuronpedia(dataset, make_autoencoder(), table, tmp_path / "np", model_id="tiny", sae_set="res")
    assert [path.name for path in paths] == ["batch-0.json", "batch-1.json", "batch-2.json"][: len(paths)]
    head = json.loads(paths[0].read_text())
    assert (head["model_id"], head["layer"], head["sae_set"], head["sae_id_suffix"]) == ("tiny", 3, "res", None)
    features = read(paths)
    assert [feature["feature_index"] for feature in features] == np.flatnonzero(table.active).tolist()
    for feature in features:
        index = feature["feature_index"]
        assert feature["frac_nonzero"] == table.density[index]
        assert sum(feature["freq_hist_data_bar_heights"]) == table.active[index]
        assert len(feature["activations"]) == (table.top_samples[index] >= 0).sum()


def test_windows_show_what_the_feature_gives_there(
    dataset: layertap.ActivationDataset, table: FeatureTable, tmp_path: Path
) -> None:
    autoencoder = make_autoencoder()
    features = read(write_neuronpedia(dataset, autoencoder, table, tmp_path, model_id="tiny", sae_set="res"))
    for feature in features[:6]:
        index = feature["feature_index"]
        for place, shown in enumerate(feature["activations"]):
            sample, row = dataset[int(table.top_samples[index, place])], int(table.top_tokens[index, place])
            begin, end = max(row - 95, 0), min(row + 33, len(sample))
            assert shown["tokens"] == sample.tokens[begin:end]
            assert shown["qualifying_token_index"] == row - begin
            left_out = (sample.flags(*TAP) & (FIRST | SINK)) != 0
            expected = np.where(left_out, 0, autoencoder.encode(sample.activation(*TAP))[:, index])[begin:end]
            np.testing.assert_allclose(shown["values"], expected, atol=1e-3)
            assert max(shown["values"]) == pytest.approx(float(table.top_values[index, place]), abs=1e-3)
