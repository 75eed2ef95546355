"""The inputs of the parts of a run on an accelerator, and how their figures are evaluated."""

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from benchmarks.accelerator import kernel, records, tokamax_kernel
from benchmarks.accelerator.__main__ import without_what_failed
from benchmarks.accelerator.aims import aims
from benchmarks.accelerator.attention_inputs import make_inputs, packed
from benchmarks.accelerator.command import figures_of
from benchmarks.accelerator.config import PARTS, TITLES, AcceleratorConfig, PartConfig
from benchmarks.accelerator.part import _MODULES
from benchmarks.accelerator.prepare import write_deep_checkpoint
from benchmarks.accelerator.sizes import deep_shape
from layertap.demo.checkpoint import weight_tensors
from layertap.model.attention import attend_dense
from layertap.model.checkpoint import open_checkpoint

CPU = PartConfig(out="out", platform="cpu", work="work")


def _record(part: str, case: str, what: str = "figures", **figures: Any) -> records.Record:
    return {"part": part, "case": case, "what": what, "figures": figures}


def test_every_part_has_a_title_and_a_module_and_all_fit_the_usual_minutes() -> None:
    assert set(PARTS) == set(TITLES) == set(_MODULES)
    assert sum(limits.seconds for limits in PARTS.values()) == 60 * AcceleratorConfig(out="out").minutes < 13 * 60


def test_what_fails_is_not_used_by_the_parts_behind_it() -> None:
    config = AcceleratorConfig(out="out")
    failed = _record("kernel", "packed 7b float32", "failed")
    wrong = _record("kernel", "behind a prefix 0.5b bfloat16", exact=False)
    missed = _record("kernel", "behind a prefix 7b bfloat16, in a window 7b bfloat16", "missed")
    found = {
        name: without_what_failed(config, given)
        for name, given in {"none": [], "failed": [failed], "wrong": [wrong], "missed": [missed]}.items()
    }
    assert {name: (one.loop, one.prefix) for name, one in found.items()} == {
        "none": ((), "shared"),
        "failed": (("float32",), "shared"),
        "wrong": ((), "whole"),
        "missed": ((), "shared"),
    }


def test_the_aims_stand_beside_what_was_measured() -> None:
    found = [
        _record("ceiling", "torch bfloat16", **{"TFLOP/s": 600.0}),
        _record("layertap", "7b all layers", **{"tokens/s": 24_000.0, "TFLOP/s": 330.0}),
        _record("layertap", "7b all layers, the prefix computed once", **{"tokens/s": 30_000.0, "TFLOP/s": 320.0}),
        _record("transformers", "7b padded, all layers", **{"tokens/s": 6_000.0}),
        _record("transformers", "7b at its best, all layers", **{"tokens/s": 12_000.0}),
        _record("command", "7b, three layers", **{"tokens/s": 29_999.0}),
        _record("command", "all layers, one core", "failed"),
        _record("stream", "from a stream", **{"tokens/s": 50.0}),
        _record("stream", "from stored shards", **{"tokens/s": 100.0}),
    ]
    cells = [aim.cells() for aim in aims(found)]
    assert cells[0] == ["7b forward pass, of the largest product", "50%", "55%", "met"]
    assert cells[1][2:] == ["not measured", ""]
    assert [row[2:] for row in cells[2:4]] == [["4.00", "met"], ["2.00", "NOT met"]]
    assert cells[6] == ["7b, three layers to disk, tokens/s", "30,000", "29,999", "NOT met"]
    assert cells[7][2] == "1.25"
    assert cells[9][2] == "not measured"
    assert cells[-2] == ["training from a stream, times from stored shards", "", "0.50", ""]


def test_a_run_says_what_it_waited_for_longest_and_what_it_says_itself() -> None:
    waited = {"waited_loading": 9.0, "waited_device": 1.0, "waited_writing": 3.0}
    run = {"tokens": 400, "shared_tokens": 100, "seconds": 4.0, "written_mb": 8.0, "cores": 2, "peak_mb": 500.0}
    spent = {"processor_seconds": 6.0, "whole_seconds": 12.0, "threads": {"encoding": 2.5}}
    figures = figures_of({**run, **waited, **spent, "bottleneck": "writing was the bottleneck: 75% of the time"})
    assert figures["waited longest for"] == "writing (75%)"
    assert (figures["tokens/s"], figures["MB/s written"], figures["cores used"]) == (100, 2, 0.5)
    assert figures["prefix tokens not computed"] == 0.25
    assert figures["in its own words"] == ["writing was the bottleneck: 75% of the time"]
    assert figures["threads s"] == ["encoding 2.50"]


def test_the_large_checkpoint_has_all_of_its_layers(tmp_path: Path) -> None:
    shape = deep_shape(CPU)
    write_deep_checkpoint(tmp_path, shape)
    checkpoint = open_checkpoint(str(tmp_path))
    assert checkpoint.config == shape
    names = [tensor.name for tensor in weight_tensors(shape)]
    with checkpoint.open_tensors(names) as tensors:
        read = {name: np.asarray(tensors[name].read(slice(None))).view(ml_dtypes.bfloat16) for name in names}
    first = {name: values for name, values in read.items() if name.startswith("model.layers.0.")}
    for name, values in first.items():
        for layer in range(1, shape.num_hidden_layers):
            np.testing.assert_array_equal(read[name.replace("layers.0.", f"layers.{layer}.")], values)
    assert len({values.tobytes() for values in first.values()}) == len(first)


@pytest.mark.parametrize("more", [{}, {"window": True}, {"prefix": True}, {"window": True, "prefix": True}], ids=str)
def test_operations_are_those_of_the_pairs_that_see_each_other(more: dict[str, bool]) -> None:
    given = make_inputs(CPU, "0.5b", "float32", packed, **more)
    starts = np.asarray(given.starts)
    before = 0 if given.shared is None else len(given.shared[0])
    window = sys.maxsize if given.window is None else given.window
    own = np.arange(starts.shape[1])[None] - starts  # a token's place in its sample
    seen = np.minimum(own + 1 + before, window).sum()
    assert given.flop == 4 * 64 * 2 * seen


def test_two_parts_of_the_keys_are_merged_by_the_sums_of_their_weights() -> None:
    given = make_inputs(CPU, "0.5b", "float32", prefix=True)
    assert given.shared is not None
    function, arguments = given.call(attend_dense)
    rows, tokens, kv_heads, group, size = given.queries.shape
    queries, starts = np.asarray(given.queries).reshape(rows, tokens, kv_heads * group, size), np.asarray(given.starts)
    index = np.arange(tokens)
    causal = (index[None, None] >= starts[:, :, None]) & (index[None, None] <= index[None, :, None])
    before = [np.broadcast_to(np.asarray(part)[None], (rows, *part.shape)) for part in given.shared]
    everything = np.ones((rows, tokens, before[0].shape[1]), bool)
    own = _attended(queries, np.asarray(given.keys), np.asarray(given.values), causal)
    merged = tokamax_kernel.merge(own, _attended(queries, *before, everything))
    np.testing.assert_allclose(merged.reshape(given.queries.shape), function(*arguments), rtol=1e-4, atol=1e-5)


def _attended(
    queries: np.ndarray, keys: np.ndarray, values: np.ndarray, visible: np.ndarray
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Attention, the largest score and the sum of the weights, as tokamax gives them."""
    scores = np.where(visible[:, None], np.einsum("bthd,bskd->bhts", queries, keys), -np.inf)
    highest = scores.max(axis=-1)
    weights = np.exp(scores - highest[..., None])
    total = weights.sum(axis=-1)
    mixed = np.einsum("bhts,bskd->bthd", weights / total[..., None], values)
    return jnp.asarray(mixed), jnp.asarray(highest), jnp.asarray(total)


def test_tokamax_is_compared_only_where_it_is_installed() -> None:
    named = [name for name in kernel.cases(CPU) if name.startswith("tokamax")]
    assert bool(named) == tokamax_kernel.is_installed()
