"""Layertap's residual stream beside transformers', layer by layer and token by token, against
float64.

In float32 the promise is that we are no further off than transformers in float32 is: times 1.5 in
the mean and 3 in the worst token (docs/numerics.md). In bfloat16 no further off than transformers
in bfloat16.
"""

from functools import partial

import jax
import numpy as np

from benchmarks.accelerator.config import PartConfig
from benchmarks.accelerator.layertap_speed import plan_of
from benchmarks.accelerator.part import Cases, Figures
from benchmarks.accelerator.reference import models, prompts_of, states_file
from benchmarks.accelerator.sizes import sizes_of
from benchmarks.config import ContenderConfig, Dtype
from benchmarks.workload import model_folder
from layertap.model import weights
from layertap.model.checkpoint import open_checkpoint
from layertap.pipeline.packing import batch_arrays, pack_window
from layertap.pipeline.step import StepProgram, resolve_taps

_MEAN: dict[Dtype, float]
_WORST: dict[Dtype, float]
_MEAN, _WORST = {"float32": 1.5, "bfloat16": 1.0}, {"float32": 3.0, "bfloat16": 1.0}


def cases(config: PartConfig) -> Cases:
    """Each model in both dtypes."""
    dtypes: tuple[Dtype, ...] = ("float32", "bfloat16")
    return {
        f"{name} {dtype}": partial(_compare, config, model, dtype)
        for name, model in models(config).items()
        for dtype in dtypes
    }


def _compare(config: PartConfig, model: ContenderConfig, dtype: Dtype) -> Figures:
    truth = np.load(states_file(config, model, "float64"), mmap_mode="r")
    theirs = np.load(states_file(config, model, dtype), mmap_mode="r")
    own = _states(config, model, dtype)
    ours = [_errors(layer, true) for layer, true in zip(own, truth, strict=True)]
    others = [_errors(layer, true) for layer, true in zip(theirs, truth, strict=True)]
    apart = max(float(_errors(one, np.asarray(other)).max()) for one, other in zip(own, theirs, strict=True))
    means = [float(layer.mean()) for layer in ours], [float(layer.mean()) for layer in others]
    worsts = [float(layer.max()) for layer in ours], [float(layer.max()) for layer in others]
    of_mean, of_worst = float(np.mean(means[0]) / np.mean(means[1])), max(worsts[0]) / max(worsts[1])
    return {
        "tokens": truth.shape[1],
        "mean": float(np.mean(means[0])),
        "transformers' mean": float(np.mean(means[1])),
        "worst": max(worsts[0]),
        "transformers' worst": max(worsts[1]),
        "of its mean": of_mean,
        "of its worst": of_worst,
        "worst between the two": apart,
        "exact": of_mean <= _MEAN[dtype] and of_worst <= _WORST[dtype],
        "mean by layer": means[0],
        "transformers' mean by layer": means[1],
        "worst by layer": worsts[0],
        "transformers' worst by layer": worsts[1],
    }


def _errors(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Each token's distance from the truth, as a part of the truth's norm."""
    wide = np.asarray(truth, np.float64)
    return np.linalg.norm(np.asarray(found, np.float64) - wide, axis=-1) / np.linalg.norm(wide, axis=-1)


def _states(config: PartConfig, model: ContenderConfig, dtype: Dtype) -> np.ndarray:
    """[layers, tokens, hidden] in float32: packed and run as a run packs and runs."""
    checkpoint, given, sizes = open_checkpoint(str(model_folder(model))), prompts_of(config, model), sizes_of(config)
    count = checkpoint.config.num_hidden_layers
    abstract = weights.abstract_model(checkpoint.config, count, dtype)
    taps = resolve_taps((), ("residual",), count)
    program = StepProgram(abstract, taps, plan_of(config, dtype, np.dtype(np.float32)))
    loaded = weights.load(checkpoint, count, jax.numpy.dtype(dtype))
    found: list[list[np.ndarray]] = [[np.empty(0)] * len(given) for _ in taps]
    for step in pack_window([len(ids) for ids in given], (sizes.row_length,), sizes.rows):
        harvested = program.harvest(program.dispatch(loaded, *batch_arrays(step, given)))
        for number, tap in enumerate(taps):
            for place in step.placements:
                row = harvested[tap][place.row]
                found[number][place.sample] = row[place.start : place.start + place.length].copy()
    return np.stack([np.concatenate(layer) for layer in found])
