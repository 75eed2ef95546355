"""What a feature is most about, and which features of a table are drawn in full.

The largest lift is no good answer to what a feature is about: it favours rare values, such as the
last row of the largest grid. Taken is the value that tells most: its lift, as a logarithm, times
the share of the feature's tokens that have it. Values on which it fires at fewer than LEAST tokens
are no finding and are left out.

Drawn are features that fire at 0.01 % to 10 % of tokens first. The best feature of each value comes
before the second best of any, or a few values would take most places. Those that tell next to
nothing come behind these.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from layertap.sae.table import FeatureTable

LEAST = 20
"""Tokens of a value at which a feature has to fire, for its lift to count."""
SPARSE, DENSE = 0.0001, 0.1
_TELLING = 0.5
"""Bits."""


@dataclass(frozen=True, eq=False)
class Strongest:
    """Of each feature the value that tells most about it."""

    value: Int64[np.ndarray, " features"]
    """Its place among the values of all groups, one group after the other, or -1."""
    told: Float64[np.ndarray, " features"]
    """How much it tells, in bits; 0 where there is none."""


def find_strongest(table: FeatureTable) -> Strongest:
    """The value that tells most about each feature."""
    told = np.zeros((len(table.active), 0))
    for group in table.groups:
        fired = table.label_active[group.name]
        share = fired / np.maximum(table.active, 1)[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            bits = share * np.log2(table.lifts(group))
        told = np.concatenate([told, np.where(fired >= LEAST, np.nan_to_num(bits, neginf=0.0), 0.0)], axis=1)
    if not told.shape[1]:
        return Strongest(np.full(len(table.active), -1), np.zeros(len(table.active)))
    best = told.argmax(axis=1)
    most = told[np.arange(len(best)), best]
    return Strongest(np.where(most > 0, best, -1), np.maximum(most, 0.0))


def order_by_interest(table: FeatureTable, strongest: Strongest) -> list[int]:
    """The features that fire at all, in the order in which they are drawn where there is room."""
    common = (table.density >= SPARSE) & (table.density <= DENSE)
    seen: Counter[int] = Counter()
    keys: dict[int, tuple[object, ...]] = {}
    for feature in np.argsort(-strongest.told, kind="stable").tolist():
        if not table.active[feature]:
            continue
        value, usual = int(strongest.value[feature]), bool(common[feature])
        known = usual and bool(strongest.told[feature] >= _TELLING)
        keys[feature] = (not known, not usual, seen[value] if known else 0, -float(strongest.told[feature]))
        seen[value] += known
    return sorted(keys, key=lambda feature: keys[feature])
