"""Merged statistics, as a table for a person and as JSON for a program."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from layertap.core.table import table
from layertap.core.taps import Tap
from layertap.shards.statistics import TapStatistics

_COLUMNS = ("site", "layer", "tokens", "mean norm", "E||x||^2", "mean std", "largest norm", "sample", "token")


def describe(statistics: Mapping[Tap, TapStatistics]) -> str:
    """One line a tap; `mean std` is the mean of the channels' standard deviations."""
    return table([_COLUMNS, *(_row(tap, of_tap) for tap, of_tap in statistics.items())])


def to_json(statistics: Mapping[Tap, TapStatistics]) -> list[dict[str, Any]]:
    """One object a tap, with the mean and standard deviation of each channel."""
    return [
        {
            "site": tap.site,
            "layer": tap.layer,
            "count": of_tap.count,
            "mean_norm": of_tap.mean_norm,
            "mean_square_norm": of_tap.mean_square_norm,
            "max_norm": {
                "norm": of_tap.max_norm,
                "sample_idx": of_tap.max_sample_idx,
                "position": of_tap.max_position,
            },
            "mean": of_tap.mean.tolist(),
            "std": of_tap.std.tolist(),
        }
        for tap, of_tap in statistics.items()
    ]


def _row(tap: Tap, of_tap: TapStatistics) -> tuple[str, ...]:
    numbers = (of_tap.mean_norm, of_tap.mean_square_norm, float(np.mean(of_tap.std)), of_tap.max_norm)
    place = (str(of_tap.max_sample_idx), str(of_tap.max_position))
    return tap.site, str(tap.layer), str(of_tap.count), *(f"{number:.5g}" for number in numbers), *place
