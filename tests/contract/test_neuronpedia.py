"""SAEDashboard's own classes read what Layertap writes for Neuronpedia, and return the same."""

import json
from pathlib import Path

import numpy as np
from sae_dashboard.neuronpedia.neuronpedia_dashboard import NeuronpediaDashboardBatch

import layertap
from layertap.core.taps import Tap
from layertap.sae.autoencoder import Autoencoder
from layertap.sae.count import count_features
from layertap.sae.neuronpedia import write_neuronpedia


def test_saedashboard_reads_the_same(run: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = {"W_enc": (64, 200), "W_dec": (200, 64), "b_enc": (200,), "b_dec": (64,)}
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    dataset, tap = layertap.ActivationDataset(run), Tap(2, "residual")
    autoencoder = Autoencoder("topk", tap, weights, k=8)
    table = count_features(dataset, autoencoder, tap)
    paths = write_neuronpedia(dataset, autoencoder, table, tmp_path, model_id="tiny", sae_set="res")
    assert paths
    for path in paths:
        written = json.loads(path.read_text())
        assert NeuronpediaDashboardBatch(**written).to_dict() == written
