"""Which tokens come, and how they are cut into runs; the same for tokens of a shard and for those
of a sample that lies in memory.

A run (`sequence=N`) is N tokens of one sample whose positions follow each other. A token that is
left out ends a run. Each stretch of tokens that follow each other is cut into runs from its
beginning on, and what is left at its end, fewer than N tokens, is left out. So runs depend on their
sample alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from layertap.core.columns import Columns, Norms, find_sinks, select, usual_norms
from layertap.core.taps import Tap
from layertap.reader.config import BatchConfig


class Tokens(Protocol):
    """What is known of some tokens that follow each other, without their activations."""

    def column(self, name: str) -> np.ndarray:
        """A value for each of them."""

    def norms(self, tap: Tap) -> np.ndarray:
        """The Euclidean norm of each one's activation; float32."""

    def sinks(self, tap: Tap, factor: float) -> np.ndarray:
        """Which of them are sinks; bool."""


@dataclass(frozen=True, eq=False)
class SampleTokens:
    """All stored tokens of one sample that lies in memory."""

    columns: Columns
    tap_norms: Mapping[Tap, Norms]

    def column(self, name: str) -> np.ndarray:
        """A value for each of them."""
        return self.columns[name]

    def norms(self, tap: Tap) -> np.ndarray:
        """The Euclidean norm of each one's activation; float32."""
        return self.tap_norms[tap]

    def sinks(self, tap: Tap, factor: float) -> np.ndarray:
        """Which of them are sinks, by the usual norm of the sample; bool."""
        norms = self.tap_norms[tap]
        (usual,) = usual_norms(norms, np.array([0, len(norms)]))
        return find_sinks(norms, usual, factor)


def kept(tokens: Tokens, config: BatchConfig, count: int) -> np.ndarray:
    """Which of `count` tokens are included and not excluded; bool."""
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
    """The runs that the chosen tokens make, by the tokens' numbers; [runs, sequence].

    `samples` and `positions` say of each token which sample it is of, and where it stands there;
    both rise.
    """
    rows = np.flatnonzero(chosen)
    breaks = (np.diff(positions[rows]) != 1) | (np.diff(samples[rows]) != 0)
    begins = np.flatnonzero(np.concatenate([np.ones(min(len(rows), 1), bool), breaks]))
    runs = np.diff(begins, append=len(rows)) // sequence
    within = np.arange(runs.sum()) - np.repeat(np.cumsum(runs) - runs, runs)
    firsts = np.repeat(begins, runs) + sequence * within
    return rows[firsts[:, None] + np.arange(sequence)]
