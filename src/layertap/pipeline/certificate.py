"""The numerics certificate: how far the stored values are from the same model in float32.

The first prompts of the run go through the model twice before the run begins: once with float32
products, and once as the run computes. Both times they are packed as the run packs. The second time
they are also rounded as for storage. For each tap, the certificate has the worst and the mean of
each token's cosine and relative error. Tokens with a NaN or an infinity are refused as in the run,
or left out and counted.

The manifest has it from the first commit on. A run that is killed before that certifies again, and
gets the same numbers; a run that is resumed later keeps them. So an interruption changes nothing.

It costs one more load of the weights, in float32, and four to six bytes of host memory for each
value of the prompts' activations at all taps.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np

from layertap.core.sample import Sample
from layertap.core.taps import Tap
from layertap.pipeline.inputs import Prompts
from layertap.pipeline.progress import Progress, Watch
from layertap.pipeline.session import OpenedModel, Session
from layertap.pipeline.stream import stream_samples
from layertap.pipeline.windows import Position, Window, WindowRules
from layertap.shards.form import ShardFormat
from layertap.shards.manifest import index_ranges
from layertap.shards.rounding import measure_sample

_FLOAT32 = np.dtype(np.float32)

_MEASURES = ("cosine_min", "cosine_mean", "relative_error_max", "relative_error_mean")


def certify(model: OpenedModel, prompts: Prompts, session: Session, count: int, form: ShardFormat) -> dict[str, Any]:
    """Measure the first `count` prompts as `form` stores them.

    Raises what reading them or running the model raises, and StorageError if the run could not
    store them.
    """
    window = _first_window(prompts, count)
    exact = replace(model, compute_dtype=_FLOAT32, capture_dtype=_FLOAT32)
    with closing(Session()) as reference:
        truth = _compute(window, exact, prompts.rules, reference)
    del reference  # with the weights in float32
    stored = _compute(window, model, prompts.rules, session)
    return {
        "prompts": len(stored),
        "tokens": sum(sample.tokens for sample in stored),
        "sample_idx": [list(pair) for pair in index_ranges(sample.sample_idx for sample in stored)],
        "reference": "float32",
        "compute_dtype": model.compute_dtype.name,
        "storage_dtype": form.stored_as,
        "taps": [
            {"layer": tap.layer, "site": tap.site} | _compare(stored, truth, tap, form)
            for tap in (model.taps if stored else ())
        ],
    }


def _first_window(prompts: Prompts, count: int) -> Window:
    """The first prompts, packed among themselves."""
    first = next(prompts.windows(), None)
    samples = [] if first is None else first.samples[:count]
    return Window(Position(), samples, prompts.rules.pack(samples), Position())


def _compute(window: Window, model: OpenedModel, rules: WindowRules, session: Session) -> list[Sample]:
    if not window.samples:
        return []
    stream = stream_samples(session, model, rules, iter([window]), Progress(), Watch().proceed)
    return [sample for _, sample in stream]


def _compare(stored: Sequence[Sample], truth: Sequence[Sample], tap: Tap, form: ShardFormat) -> dict[str, Any]:
    pairs = [_compare_tokens(ours, exact, tap, form) for ours, exact in zip(stored, truth, strict=True)]
    cosines, errors = (np.concatenate(values) for values in zip(*pairs, strict=True))
    found = {"nonfinite": left_out} if (left_out := sum(sample.tokens for sample in stored) - len(cosines)) else {}
    if not len(cosines):
        return dict.fromkeys(_MEASURES) | found
    numbers = (cosines.min(), cosines.mean(), errors.max(), errors.mean())
    return dict(zip(_MEASURES, map(float, numbers), strict=True)) | found


def _compare_tokens(stored: Sample, truth: Sample, tap: Tap, form: ShardFormat) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and relative error at each token that is finite in both. Tokens of zeros are compared
    with a tiny number.
    """
    rounded, norms, _ = measure_sample(stored, tap, form)
    finite = np.isfinite(norms) & np.isfinite(truth.activations[tap]).all(axis=1)
    found, expected = (values[finite].astype(np.float64) for values in (rounded, truth.activations[tap]))
    sizes = np.linalg.norm(expected, axis=1) + np.finfo(np.float32).tiny
    found_sizes = np.linalg.norm(found, axis=1) + np.finfo(np.float32).tiny
    return (
        np.einsum("th,th->t", found, expected) / (sizes * found_sizes),
        np.linalg.norm(found - expected, axis=1) / sizes,
    )
