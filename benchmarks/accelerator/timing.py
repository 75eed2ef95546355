"""The clock around work that a device does while Python continues."""

import statistics
from collections.abc import Callable
from typing import Any

import jax

from benchmarks.workload import seconds_of

_BATCH_SECONDS = 0.1
_BATCHES = 5
_LARGEST = 50


def milliseconds(call: Callable[[], Any]) -> float:
    """What one call takes: the median of five batches, each waited for once, after one call that
    warms up.
    """
    _wait(call())
    once = seconds_of(lambda: _wait(call()))
    count = min(_LARGEST, max(1, round(_BATCH_SECONDS / once)))

    def batch() -> None:
        last = None
        for _ in range(count):
            last = call()  # a card computes in this order; all results at once might not fit its memory
        _wait(last)

    return 1e3 * statistics.median(seconds_of(batch) for _ in range(_BATCHES)) / count


def _wait(results: object) -> None:
    jax.block_until_ready(results)  # type: ignore[no-untyped-call]
