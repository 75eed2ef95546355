"""Choose tokens and cut them into runs, in the same way for a shard and for a sample in memory.

A run (`sequence=N`) is N tokens of one sample with consecutive positions. A token that is left out
ends a run. Each stretch of consecutive tokens is cut into runs from its beginning; fewer than N
tokens at its end are left out. So the runs depend only on their sample.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from layertap.core.columns import Columns, Norms, find_sinks, select, usual_norms
from layertap.core.taps import Tap
from layertap.reader.config import BatchConfig


class Tokens(Protocol):
    """What is known about some consecutive tokens without their activations."""

    def column(self, name: str) -> np.ndarray:
        """Return one value per token."""

    def norms(self, tap: Tap) -> np.ndarray:
        """Return the Euclidean norm of each activation; float32."""

    def sinks(self, tap: Tap, factor: float) -> np.ndarray:
        """Return which tokens are sinks; bool."""


@dataclass(frozen=True, eq=False)
class SampleTokens:
    """All stored tokens of one sample in memory."""

    columns: Columns
    tap_norms: Mapping[Tap, Norms]

    def column(self, name: str) -> np.ndarray:
        """Return one value per token."""
        return self.columns[name]

    def norms(self, tap: Tap) -> np.ndarray:
        """Return the Euclidean norm of each activation; float32."""
        return self.tap_norms[tap]

    def sinks(self, tap: Tap, factor: float) -> np.ndarray:
        """Return which tokens are sinks, by the usual norm of the sample; bool."""
        norms = self.tap_norms[tap]
        (usual,) = usual_norms(norms, np.array([0, len(norms)]))
        return find_sinks(norms, usual, factor)


def choose_tokens(tokens: Tokens, config: BatchConfig, count: int) -> np.ndarray:
    """Return which of `count` tokens are included and not excluded; bool."""
    chosen = np.ones(count, bool)
    if config.selections:
        labels = {name: tokens.column(name) for name in ("role", "cells")}
        for names in config.selections:
            chosen &= select(labels, names)
    if config.excluded_bits:
        chosen &= (tokens.column("flags") & config.excluded_bits) == 0
    if "sink" in config.exclude:
        for tap in config.taps:
            chosen &= ~tokens.sinks(tap, config.sink_factor)
    if "nonfinite" in config.exclude:
        for tap in config.taps:
            chosen &= np.isfinite(tokens.norms(tap))
    return chosen


def cut_runs(chosen: np.ndarray, samples: np.ndarray, positions: np.ndarray, sequence: int) -> np.ndarray:
    """Cut the chosen tokens into runs; returns indices of tokens, [runs, sequence].

    `samples` and `positions` give the sample of each token and its position there; both ascend.
    """
    rows = np.flatnonzero(chosen)
    breaks = (np.diff(positions[rows]) != 1) | (np.diff(samples[rows]) != 0)
    begins = np.flatnonzero(np.concatenate([np.ones(min(len(rows), 1), bool), breaks]))
    runs = np.diff(begins, append=len(rows)) // sequence
    within = np.arange(runs.sum()) - np.repeat(np.cumsum(runs) - runs, runs)
    firsts = np.repeat(begins, runs) + sequence * within
    return rows[firsts[:, None] + np.arange(sequence)]
