"""Samples are cut out of steps: the right tokens, each sample in memory of its own."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from runs import changed, finished, out

from layertap.config.extract import ExtractConfig
from layertap.core.columns import ROLES, token_columns
from layertap.core.sample import Sample
from layertap.core.taps import Tap
from layertap.pipeline import stream
from layertap.pipeline.cutting import cutter, gather
from layertap.pipeline.kept import KeptTokens
from layertap.pipeline.packing import Placement
from layertap.pipeline.step import Beginning

NARROW, WIDE, OTHER = Tap(0, "residual"), Tap(0, "neurons"), Tap(1, "residual")
WIDTHS = {NARROW: 8, WIDE: 12, OTHER: 8}
ALL, USER = KeptTokens(), ROLES.index("user")


def values(tokens: int, seed: int, dtype: Any = np.float32) -> dict[Tap, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {tap: rng.standard_normal((tokens, width), np.float32).astype(dtype) for tap, width in WIDTHS.items()}


def a_sample(number: int, tokens: int) -> Sample:
    """Every third token is a user's."""
    columns = token_columns(np.arange(tokens, dtype=np.int32), frozenset())
    columns["role"][::3] = USER
    return Sample(number, str(number), "", columns)


@pytest.fixture
def step() -> Mapping[Tap, Mapping[int, np.ndarray]]:
    """Two rows of 40 tokens."""
    rows = [values(40, seed) for seed in range(2)]
    return {tap: {number: row[tap] for number, row in enumerate(rows)} for tap in WIDTHS}


@pytest.fixture
def beginning() -> Beginning:
    """A prefix of five tokens."""
    return Beginning(5, 5, (), values(5, 9))


PLACED = [
    (a_sample(0, 20), Placement(0, 1, 0, 20)),
    (a_sample(1, 15), Placement(1, 0, 7, 15)),
    (a_sample(2, 20), Placement(2, 1, 20, 20)),
]
BEHIND_FIVE = [(a_sample(place.sample, place.length + 5), place) for _, place in PLACED]


@pytest.mark.parametrize("copiers", [1, 3])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_each_sample_has_its_own_tokens_in_order(copiers: int, dtype: Any) -> None:
    rows = [values(40, seed, dtype) for seed in range(2)]
    given = {tap: {number: row[tap] for number, row in enumerate(rows)} for tap in WIDTHS}
    with cutter(copiers, ALL) as cut:
        found = list(cut(PLACED, given, None))
    assert [sample.sample_idx for sample in found] == [0, 1, 2]
    for sample, (_, place) in zip(found, PLACED, strict=True):
        for tap, activation in sample.activations.items():
            expected = rows[place.row][tap][place.start : place.start + place.length]
            assert activation.dtype == dtype
            assert np.array_equal(activation, expected), tap


@pytest.mark.parametrize("copiers", [1, 3])
def test_the_prefix_comes_first(copiers: int, step: Any, beginning: Beginning) -> None:
    with cutter(copiers, ALL) as cut:
        for sample, (_, place) in zip(cut(BEHIND_FIVE, step, beginning), BEHIND_FIVE, strict=True):
            for tap, activation in sample.activations.items():
                own = step[tap][place.row][place.start : place.start + place.length]
                assert np.array_equal(activation, np.concatenate([beginning.activations[tap], own]))


@pytest.mark.parametrize("behind", [False, True])
def test_kept_tokens_are_those_of_the_whole_sample(step: Any, beginning: Beginning, behind: bool) -> None:
    before, placed = (beginning, BEHIND_FIVE) if behind else (None, PLACED)
    with cutter(1, ALL) as cut:
        whole = list(cut(placed, step, before))
    with cutter(1, KeptTokens(("role:user",))) as cut:
        for sample, of in zip(cut(placed, step, before), whole, strict=True):
            rows = of.columns["role"] == USER
            assert 0 < sample.tokens < of.tokens
            assert np.array_equal(sample.token_ids, of.token_ids[rows])
            for tap, activation in sample.activations.items():
                assert np.array_equal(activation, of.activations[tap][rows])


def test_a_sample_shares_no_memory_with_the_step_or_another_sample(step: Any, beginning: Beginning) -> None:
    with cutter(1, ALL) as cut:
        one, other, _ = cut(BEHIND_FIVE, step, beginning)
    for tap, activation in one.activations.items():
        sources = [*step[tap].values(), beginning.activations[tap], *other.activations.values()]
        assert not any(np.shares_memory(activation, source) for source in sources)
        assert not any(np.shares_memory(activation, value) for of, value in one.activations.items() if of != tap)


def test_taps_of_one_width_are_one_array() -> None:
    found = gather({tap: [rows[:3], rows[3:]] for tap, rows in values(10, 0).items()})
    assert found[NARROW].base is found[OTHER].base is not None
    assert found[WIDE].base is not found[NARROW].base


def test_an_error_comes_in_the_place_of_its_sample(step: Any) -> None:
    lost = (a_sample(1, 15), Placement(1, 7, 0, 15))  # there is no row 7
    with cutter(3, ALL) as cut:
        samples = cut([PLACED[0], lost, PLACED[2]], step, None)
        assert next(samples).sample_idx == 0
        with pytest.raises(KeyError):
            next(samples)


def test_the_block_may_end_before_the_last_sample(step: Any) -> None:
    before = set(threading.enumerate())
    with cutter(3, ALL) as cut:
        assert next(cut(PLACED * 20, step, None)).sample_idx == 0
    assert set(threading.enumerate()) == before


def test_threads_change_no_byte_of_a_run(
    config: ExtractConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished(config)
    monkeypatch.setattr(stream, "copiers", lambda _model: 4)
    elsewhere = changed(config, **{name: str(tmp_path / "4" / name) for name in ("output_dir", "checkpoint_dir")})
    finished(elsewhere)
    first, second = ({path.name: path.read_bytes() for path in out(it).rglob("shard_*")} for it in (config, elsewhere))
    assert first
    assert first == second
