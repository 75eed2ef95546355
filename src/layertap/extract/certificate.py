"""The numerics certificate: how far what is stored is from the same model in float32, measured on this machine.

The first prompts of the run go through the model twice before the run begins, once with float32 products and once as
the run computes; both times packed as the run packs, and the second time rounded as it is stored. For each tap the
cosine and the relative error of each token's activation are told by their worst and their mean.

It stands in the manifest from the first commit on. A run that is killed before that certifies again, and finds the same
numbers; one that is resumed later keeps them. So it makes no difference whether a run was interrupted.

It costs one more load of the weights, in float32, and on the host four to six bytes for each value of the
prompts' activations at all taps.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from layertap.core.taps import Tap
from layertap.extract import backend
from layertap.extract.packing import batch_arrays, pack_window
from layertap.extract.session import Session
from layertap.extract.setup import Setup
from layertap.extract.step import StepProgram, plan_for
from layertap.extract.windows import Position, read_windows
from layertap.model import weights
from layertap.model.qwen2 import Qwen2
from layertap.prompts import Sample
from layertap.shards.manifest import index_ranges

_FLOAT32 = np.dtype(np.float32)

Activation = Float[np.ndarray, "_tokens hidden"]
Activations = dict[Tap, list[Activation]]


def certify(setup: Setup, session: Session) -> dict[str, Any]:
    """Measure the first `--certify` prompts; raises what reading them or running the model raises."""
    window = next(read_windows(setup.records(), setup.maker, setup.rules, Position()), None)
    samples = [] if window is None else list(window.samples[: setup.config.certify])
    truth = stored = Activations()
    if samples:
        truth = _truth(setup, samples)
        stored = _activations(setup, samples, session.program(setup), session.model(setup))
    return {
        "prompts": len(samples),
        "tokens": sum(len(sample.token_ids) for sample in samples),
        "sample_idx": [list(pair) for pair in index_ranges(sample.sample_idx for sample in samples)],
        "reference": "float32",
        "compute_dtype": setup.config.compute_dtype,
        "storage_dtype": setup.config.stored_as,
        "taps": [
            {"layer": tap.layer, "site": tap.site} | _compare(stored[tap], truth[tap], setup.shard_format.dtype)
            for tap in stored
        ],
    }


def _truth(setup: Setup, samples: Sequence[Sample]) -> Activations:
    """The samples' activations in float32; the weights are gone again when it returns."""
    abstract = weights.abstract_model(setup.checkpoint.config, setup.num_layers, _FLOAT32)
    program = StepProgram(abstract, setup.taps, plan_for(backend.platform(), _FLOAT32, setup.mesh))
    model = weights.load(setup.checkpoint, setup.num_layers, _FLOAT32, setup.mesh)
    return _activations(setup, samples, program, model)


def _activations(setup: Setup, samples: Sequence[Sample], program: StepProgram, model: Qwen2) -> Activations:
    """The samples' activations at each tap, step by step in the order of packing."""
    token_ids = [sample.token_ids for sample in samples]
    found: dict[Tap, list[Activation]] = {tap: [] for tap in setup.taps}
    rules = setup.rules
    for step in pack_window([len(ids) for ids in token_ids], rules.ladder, rules.batch_size, rules.devices):
        outputs = program.dispatch(model, *batch_arrays(step, token_ids))
        for tap, rows in program.harvest(outputs).items():
            for place in step.placements:
                found[tap].append(rows[place.row][place.start : place.start + place.length].copy())
    return found


def _compare(stored: Sequence[Activation], truth: Sequence[Activation], dtype: np.dtype) -> dict[str, float]:
    pairs = [_compare_tokens(*pair, dtype) for pair in zip(stored, truth, strict=True)]
    cosines, errors = (np.concatenate(values) for values in zip(*pairs, strict=True))
    return {
        "cosine_min": float(cosines.min()),
        "cosine_mean": float(cosines.mean()),
        "relative_error_max": float(errors.max()),
        "relative_error_mean": float(errors.mean()),
    }


def _compare_tokens(stored: Activation, truth: Activation, dtype: np.dtype) -> Iterator[np.ndarray]:
    """Cosine and relative error at each token; an activation of nothing but zeros is compared with a tiny number."""
    found, expected = stored.astype(dtype).astype(np.float64), truth.astype(np.float64)
    sizes = np.linalg.norm(expected, axis=1) + np.finfo(np.float32).tiny
    found_sizes = np.linalg.norm(found, axis=1) + np.finfo(np.float32).tiny
    yield np.einsum("th,th->t", found, expected) / (sizes * found_sizes)
    yield np.linalg.norm(found - expected, axis=1) / sizes
