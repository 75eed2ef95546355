"""What `layertap stats` prints: the statistics of each tap, and which predict trouble for an SAE.

|mean|/|std|   the norm of the mean, divided by the root of the summed variances. Above 1, the
               mean is over half of E||x||^2: subtract it
in sinks       the share of the squared norm that is in sinks: leave them out, or they dominate
               the scale and the loss
in prefix      the share in the tokens that all samples begin with, which an autoencoder sees
               again and again
of rest        the prefix's share of what is outside sinks
largest        the largest channels, as number:value, by |mean| and by standard deviation
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from layertap.core.columns import SINK_FACTOR
from layertap.core.table import table
from layertap.core.taps import Tap
from layertap.shards.shares import Shares
from layertap.shards.statistics import TapStatistics

_HEADER = ("site", "layer", "tokens", "mean norm", "E||x||^2", "mean std", "largest norm", "sample", "token")
_TROUBLE = ("site", "layer", "|mean|/|std|", "in sinks", "in prefix", "of rest", "largest means", "largest stds")
_LEFT = (6, 7)
_NAMED = 3


def describe_statistics(statistics: Mapping[Tap, TapStatistics], shares: Shares | None) -> str:
    """Return two tables with one line for each tap.

    `mean std` is the mean of the channels' standard deviations.
    """
    sizes = table([_HEADER, *(_sizes(tap, row) for tap, row in statistics.items())])
    trouble = table([_TROUBLE, *(_trouble(tap, row, shares) for tap, row in statistics.items())], _LEFT)
    return f"{sizes}\n\n{trouble}\n\n{_explanation(shares)}"


def statistics_to_json(statistics: Mapping[Tap, TapStatistics], shares: Shares | None) -> list[dict[str, Any]]:
    """Return one object for each tap, with the mean and standard deviation of each channel."""
    return [
        {
            "site": tap.site,
            "layer": tap.layer,
            "count": row.count,
            "mean_norm": row.mean_norm,
            "mean_square_norm": row.mean_square_norm,
            "max_norm": {"norm": row.max_norm, "sample_idx": row.max_sample_idx, "position": row.max_position},
            "mean_over_std": row.mean_over_std,
            "sink_share": None if shares is None else shares.sinks[tap],
            "prefix_share": None if shares is None else shares.prefix[tap],
            "prefix_share_of_rest": None if shares is None else shares.prefix_of_rest[tap],
            "prefix_tokens": None if shares is None else shares.prefix_tokens,
            "largest_mean_channels": _largest(row.mean),
            "largest_std_channels": _largest(row.std),
            "mean": row.mean.tolist(),
            "std": row.std.tolist(),
        }
        for tap, row in statistics.items()
    ]


def _largest(values: np.ndarray) -> list[int]:
    """Return the numbers of the channels with the largest values, the largest first."""
    return np.argsort(-np.abs(values), kind="stable")[:_NAMED].tolist()


def _sizes(tap: Tap, row: TapStatistics) -> tuple[str, ...]:
    numbers = (row.mean_norm, row.mean_square_norm, float(np.mean(row.std)), row.max_norm)
    place = (str(row.max_sample_idx), str(row.max_position))
    return tap.site, str(tap.layer), str(row.count), *(f"{number:.5g}" for number in numbers), *place


def _trouble(tap: Tap, row: TapStatistics, shares: Shares | None) -> tuple[str, ...]:
    of_norm = () if shares is None else (shares.sinks, shares.prefix, shares.prefix_of_rest)
    known = [f"{own[tap]:.1%}" for own in of_norm] or ["-"] * 3
    largest = (" ".join(f"{place}:{values[place]:.3g}" for place in _largest(values)) for values in (row.mean, row.std))
    return tap.site, str(tap.layer), f"{row.mean_over_std:.3g}", *known, *largest


def _explanation(shares: Shares | None) -> str:
    if shares is None:
        return "in sinks, in prefix: norms were not read; --norms all reads them"
    return (
        f"in sinks, in prefix: shares of the squared norm; of rest: the prefix's of what is in no sink. A sink has over"
        f"\n{SINK_FACTOR:g} times the usual norm of its sample; the prefix is {shares.prefix_tokens} tokens, which all"
        " samples begin with."
    )
