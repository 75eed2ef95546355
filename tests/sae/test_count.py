"""Counts of features over a real run, held against counts by plain loops over its samples."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from autoencoders import FEATURES, TAP, WIDTH, make_autoencoder
from runs import finished, out, small_run

import layertap
from layertap.core.columns import ROLES, SIDES, SINK_FACTOR, TEST
from layertap.errors import UsageError
from layertap.reader.sample import Sample
from layertap.sae import count
from layertap.sae.autoencoder import Autoencoder
from layertap.sae.count import count_features
from layertap.sae.encoder import make_encoder
from layertap.sae.table import FeatureTable

KINDS: dict[str, dict[str, Any]] = {
    "standard": {},
    "not subtracted": {"subtracts_b_dec": False},
    "layer norm": {"normalised": "layer_norm"},
    "constant norm": {"normalised": "constant_norm_rescale"},
    "topk": {"kind": "topk", "k": 5},
    "topk of all": {"kind": "topk", "k": 99},
    "topk by decoder": {"kind": "topk", "k": 5, "by_decoder_norm": True},
    "jumprelu": {"kind": "jumprelu"},
    "gated": {"kind": "gated"},
}


@pytest.mark.parametrize("name", KINDS)
def test_the_encoder_in_jax_is_the_one_in_numpy(name: str) -> None:
    autoencoder = make_autoencoder(**KINDS[name])
    x = np.random.default_rng(2).normal(size=(64, WIDTH)).astype(np.float32) * 3
    expected = autoencoder.encode(x)
    assert (expected > 0).any()
    np.testing.assert_allclose(np.asarray(make_encoder(autoencoder)(x)), expected, rtol=1e-4, atol=1e-4)


@pytest.fixture
def dataset(few_tasks: Path, tiny_model: Path, tmp_path: Path) -> layertap.ActivationDataset:
    config = small_run(few_tasks, tiny_model, tmp_path, format="safetensors")
    finished(config)
    return layertap.ActivationDataset(out(config))


def chosen(sample: Sample) -> np.ndarray:
    """The rows of a sample that are counted: no first token and no sink."""
    norms = sample.norms(*TAP)
    usual = np.sort(norms)[(len(norms) - 1) // 2]
    return np.flatnonzero((sample.positions > 0) & (norms <= SINK_FACTOR * usual))


def answers(sample: Sample) -> list[dict[str, str]]:
    """Return what each token of a sample is, by group, computed one token at a time."""
    labels, found = sample.labels, []
    grids = labels.grids()
    for token in range(len(sample)):
        own = {"role": ROLES[labels.role[token]]}
        if labels.cells[token] == 1:
            pair, row, col = labels.example[token], int(labels.row[token]), int(labels.col[token])
            side = SIDES[labels.side[token]]
            grid = grids["test" if pair == TEST else int(pair), side]
            assert grid is not None
            own |= {"grid": side, "row": str(row), "column": str(col)}
            own |= {
                "colour": str(grid[row][col]),
                "edge of grid": edge(grid, row, col),
                "object": object_(grid, row, col),
            }
        found.append(own)
    return found


def edge(grid: Any, row: int, col: int) -> str:
    ends = (row in (0, len(grid) - 1)) + (col in (0, len(grid[0]) - 1))
    return ("inside", "edge", "corner")[ends]


def object_(grid: Any, row: int, col: int) -> str:
    if grid[row][col] == 0:
        return "background"
    around = [(row - 1, col), (row + 1, col), (row, col - 1), (row, col + 1)]
    same = [0 <= r < len(grid) and 0 <= c < len(grid[0]) and grid[r][c] == grid[row][col] for r, c in around]
    return "inside an object" if all(same) else "edge of an object"


def require_brute_force(table: FeatureTable, dataset: layertap.ActivationDataset, autoencoder: Autoencoder) -> None:
    encode = make_encoder(autoencoder)
    tokens, active, sums, samples = 0, np.zeros(FEATURES, int), np.zeros(FEATURES), []
    of_label: dict[tuple[str, str], list[np.ndarray]] = defaultdict(list)
    histogram = np.zeros((FEATURES, len(table.edges) - 1), int)
    for number, sample in enumerate(dataset):
        rows = chosen(sample)
        values = np.asarray(encode(sample.activation(*TAP)[rows])).astype(float)
        tokens += len(rows)
        active += (values > 0).sum(axis=0)
        sums += values.sum(axis=0)
        histogram += np.array([np.histogram(own[own > 0], table.edges)[0] for own in values.T])
        samples += [(-values[:, f].max(), number, int(rows[values[:, f].argmax()]), f) for f in range(FEATURES)]
        told = answers(sample)
        for row, value in zip(rows.tolist(), values, strict=True):
            for group, name in told[row].items():
                of_label[group, name].append(value > 0)
    assert table.tokens == tokens
    np.testing.assert_array_equal(table.active, active)
    np.testing.assert_array_equal(table.histogram, histogram)
    np.testing.assert_allclose(table.sums, sums, rtol=1e-5)
    require_labels(table, of_label)
    require_top(table, samples)


def require_labels(table: FeatureTable, of_label: dict[tuple[str, str], list[np.ndarray]]) -> None:
    assert {group.name for group in table.groups} == {group for group, _ in of_label}
    for group in table.groups:
        for number, name in enumerate(group.values):
            key = str(number) if group.name == "colour" else name
            fired = of_label.get((group.name, key), [])
            assert table.label_tokens[group.name][number] == len(fired), (group.name, name)
            expected = np.sum(fired, axis=0) if fired else np.zeros(FEATURES)
            np.testing.assert_array_equal(table.label_active[group.name][:, number], expected)


def require_top(table: FeatureTable, samples: list[tuple[float, int, int, int]]) -> None:
    for feature in range(FEATURES):
        best = sorted(entry[:3] for entry in samples if entry[3] == feature and entry[0] < 0)
        best = best[: table.top_samples.shape[1]]
        count = len(best)
        assert table.top_samples[feature].tolist() == [number for _, number, _ in best] + [-1] * (12 - count)
        assert table.top_tokens[feature].tolist() == [row for _, _, row in best] + [-1] * (12 - count)
        np.testing.assert_allclose(table.top_values[feature, :count], [-value for value, _, _ in best], rtol=1e-6)
        assert not table.top_values[feature, count:].any()


@pytest.mark.parametrize("kind", ["standard", "topk"])
def test_counts_are_those_of_plain_loops(kind: str, dataset: layertap.ActivationDataset) -> None:
    autoencoder = make_autoencoder(kind, k=5)
    require_brute_force(count_features(dataset, autoencoder, TAP), dataset, autoencoder)


def test_steps_may_end_within_samples(dataset: layertap.ActivationDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(count, "_MOST", 64)
    autoencoder = make_autoencoder()
    require_brute_force(count_features(dataset, autoencoder, TAP), dataset, autoencoder)


def test_another_width_is_refused(dataset: layertap.ActivationDataset) -> None:
    autoencoder = make_autoencoder()
    narrow = Autoencoder("standard", None, {name: array[:9] for name, array in autoencoder.weights.items()})
    with pytest.raises(UsageError, match="takes activations of width 9"):
        count_features(dataset, narrow, TAP)
