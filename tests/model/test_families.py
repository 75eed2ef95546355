"""Every family at every site and layer against transformers; packed against alone."""

import sys
from functools import cache
from pathlib import Path

import families
import forward
import huggingface
import jax.numpy as jnp
import numpy as np
import pytest

from layertap.core.taps import SITES, Tap
from layertap.model import weights
from layertap.model.attention import attend_dense, attend_flash
from layertap.model.checkpoint import open_checkpoint
from layertap.model.decoder import ForwardPlan
from layertap.pipeline.packing import Placement, Step, batch_arrays
from layertap.pipeline.step import StepProgram, resolve_taps

# In these each peculiarity is found once; all of them in `make test-slow`.
_QUICK = ("qwen3", "llama-3.1", "gemma2", "phi3-partial")
_TOKENS = 700  # longer than every window, and than the context of before scaling


@pytest.fixture(
    scope="module",
    params=[name if name in _QUICK else pytest.param(name, marks=pytest.mark.slow) for name in families.FAMILIES],
)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    families.write_family(path, request.param)
    return path


@cache
def truth_of(folder: Path, dtype: str = "float32") -> dict[Tap, np.ndarray]:
    return huggingface.activations(folder, _ids(_TOKENS), dtype)


def _ids(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, 512, count, dtype=np.int32)


def _plan(attend=attend_flash) -> ForwardPlan:
    return ForwardPlan(np.dtype(np.float32), attend)


@pytest.mark.parametrize("attend", [attend_flash, pytest.param(attend_dense, marks=pytest.mark.slow)])
def test_float32_is_within_1e_4_of_transformers(folder: Path, attend) -> None:
    truth, values = truth_of(folder), forward.activations(folder, _ids(_TOKENS), _plan(attend))
    assert set(values) == set(truth)
    errors = {tap: huggingface.relative_errors(values[tap], truth[tap]) for tap in truth}
    for site in SITES:
        own = [errors[tap] for tap in errors if tap.site == site]
        worst, mean = max(it.max() for it in own), np.mean([it.mean() for it in own])
        print(f"{folder.name[:-1]:16} {site:13} worst {worst:.1e}  mean {mean:.1e}", file=sys.stderr)
    assert max(it.max() for it in errors.values()) <= 1e-4


@pytest.mark.slow
def test_bfloat16_is_no_further_from_float32_than_transformers_in_bfloat16(folder: Path) -> None:
    truth, theirs = truth_of(folder), truth_of(folder, "bfloat16")
    values = forward.activations(folder, _ids(_TOKENS), _plan(), "bfloat16")
    ours = {tap: value.astype(jnp.bfloat16) for tap, value in values.items()}
    mean_ours = {tap: huggingface.relative_errors(ours[tap], truth[tap]).mean() for tap in truth}
    mean_theirs = {tap: huggingface.relative_errors(theirs[tap], truth[tap]).mean() for tap in truth}
    further = {tap: (mean_ours[tap], mean_theirs[tap]) for tap in truth if mean_ours[tap] > 1.02 * mean_theirs[tap]}
    assert not further


@pytest.mark.whole
def test_packed_equals_alone(folder: Path) -> None:
    ids = [_ids(count, seed) for seed, count in enumerate((150, 331, 30))]
    starts = np.cumsum([0] + [len(own) for own in ids])
    placements = tuple(Placement(index, 0, int(starts[index]), len(own)) for index, own in enumerate(ids))
    checkpoint = open_checkpoint(str(folder))
    model = weights.load(checkpoint, 4, jnp.float32)
    program = StepProgram(model, resolve_taps((), SITES, 4), _plan())
    packed = program.harvest(program.dispatch(model, *batch_arrays(Step(1, 1024, placements), ids)))
    for index, own in enumerate(ids):
        for tap, value in forward.activations(folder, own, _plan()).items():
            found = packed[tap][0][starts[index] : starts[index] + len(own)]
            np.testing.assert_allclose(found, value, rtol=2e-5, atol=2e-5)


@pytest.mark.whole
def test_samples_that_go_on_behind_a_prefix_equal_whole_ones(folder: Path) -> None:
    """Two of them in one row; the prefix is longer than some windows, and is no whole block."""
    whole = _ids(_TOKENS)
    prefix, rest, other = whole[:250], whole[250:], _ids(90, seed=2)
    model = weights.load(open_checkpoint(str(folder)), 4, jnp.float32)
    program = StepProgram(model, resolve_taps((), SITES, 4), _plan())
    beginning = program.begin(model, prefix)
    placements = (Placement(0, 0, 0, len(rest)), Placement(1, 0, len(rest), len(other)))
    outputs = program.dispatch(model, *batch_arrays(Step(1, 1024, placements, 1), [rest, other]), beginning)
    found = program.harvest(outputs, beginning)
    for place, ids in zip(placements, (whole, np.concatenate([prefix, other])), strict=True):
        for tap, expected in forward.activations(folder, ids, _plan()).items():
            own = found[tap][0][place.start : place.start + place.length]
            joined = np.concatenate([beginning.activations[tap], own])
            assert huggingface.relative_errors(joined, expected).max() <= 1e-5
            if ids is whole:
                assert huggingface.relative_errors(joined, truth_of(folder)[tap]).max() <= 1e-4
