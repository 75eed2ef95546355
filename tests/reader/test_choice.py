"""Which tokens come is found alike in a shard and in memory; runs are cut from each stretch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import outputs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layertap import ActivationDataset
from layertap.core.columns import COLUMNS
from layertap.core.taps import Tap
from layertap.reader.choice import SampleTokens, choose_tokens, cut_runs
from layertap.reader.config import BatchConfig

TAPS = (Tap(0, "residual"), Tap(2, "residual"))


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"exclude": frozenset({"first", "special"})},
        {"exclude": frozenset({"sink"}), "sink_factor": 1.2},
        {"exclude": frozenset({"nonfinite"})},
        {"include": frozenset({"text"}), "exclude": frozenset({"first"})},
        {"role": frozenset({"user"})},
    ],
)
def test_a_sample_in_memory_is_chosen_from_as_a_stored_one(folder: Path, asked: dict[str, Any]) -> None:
    dataset = ActivationDataset(folder)
    config = BatchConfig(batch_size=1, taps=TAPS, **asked)
    expected = {(number, position) for batch in dataset.batches(4, **asked) for number, position in places(batch)}
    found = set[tuple[int, int]]()
    for number, one in enumerate(dataset):
        columns = {name: one.column(name) for name in COLUMNS}
        tokens = SampleTokens(columns, {tap: one.norms(*tap) for tap in TAPS})
        found |= {(number, int(row)) for row in np.flatnonzero(choose_tokens(tokens, config, len(one)))}
    assert found == expected
    assert (len(found) == dataset.tokens) == (asked in ({}, {"exclude": frozenset({"nonfinite"})}))


def places(batch: Any) -> Sequence[tuple[int, int]]:
    return list(zip(batch.samples.tolist(), batch.positions.tolist(), strict=True))


def test_what_is_not_finite_in_memory_is_left_out_where_that_is_asked() -> None:
    columns = {name: values[:3] for name, values in outputs.sample(0, 3).columns.items()}
    norms = {TAPS[0]: np.array([1, np.inf, 2], np.float32), TAPS[1]: np.array([np.nan, 1, 2], np.float32)}
    config = BatchConfig(batch_size=1, taps=TAPS, exclude=frozenset({"nonfinite"}))
    assert choose_tokens(SampleTokens(columns, norms), config, 3).tolist() == [False, False, True]


@given(st.lists(st.lists(st.booleans(), max_size=12), max_size=4), st.integers(1, 4))
def test_runs_are_what_fits_into_each_stretch(samples: list[list[bool]], length: int) -> None:
    chosen = np.array([flag for sample in samples for flag in sample], bool)
    owners = np.array([number for number, sample in enumerate(samples) for _ in sample], np.int64)
    positions = np.array([place for sample in samples for place in range(len(sample))], np.int64)
    runs = cut_runs(chosen, owners, positions, length)
    assert runs.shape == (len(runs), length)
    words = ["".join("x" if flag else " " for flag in sample) for sample in samples]
    assert len(runs) == sum(len(stretch) // length for word in words for stretch in word.split())
    assert len(np.unique(runs)) == runs.size
    assert chosen[runs].all()
    assert (np.diff(runs, axis=1) == 1).all()
    assert (owners[runs] == owners[runs[:, :1]]).all()
