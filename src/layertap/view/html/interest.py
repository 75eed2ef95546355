"""What a feature is most about, and which features of a table are drawn in full.

The largest lift does not show what a feature is about: it favours rare values, such as the last row
of the largest grid. Instead, this module takes the value that says most: the logarithm of its lift,
times the share of the feature's tokens that have it. It leaves out values on which a feature fires
at fewer than LEAST tokens, because so few prove nothing.

Features that fire at 0.01 % to 10 % of tokens are drawn first. The best feature of each value comes
before the second best of any; otherwise a few values would take most places. Features whose value
says almost nothing come after these.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from layertap.sae.table import FeatureTable

LEAST = 20
"""At how many tokens of a value a feature has to fire for its lift to count."""
SPARSE, DENSE = 0.0001, 0.1
_TELLING = 0.5
"""In bits. A value that says less does not count as what a feature is about."""


@dataclass(frozen=True, eq=False)
class Strongest:
    """For each feature, the value that says most about it."""

    value: Int64[np.ndarray, " features"]
    """Its place among the values of all groups, one group after the other, or -1."""
    told: Float64[np.ndarray, " features"]
    """How much it says, in bits; 0 where there is none."""


def find_strongest(table: FeatureTable) -> Strongest:
    """Find the value that says most about each feature."""
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
    """Return the features that fire at all, in the order in which they are drawn."""
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
