"""An autoencoder as a page shows it: what was counted, and which features are drawn in full."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from layertap.core.taps import Tap
from layertap.sae.autoencoder import Autoencoder
from layertap.sae.table import FeatureTable
from layertap.view.html.interest import Strongest

_MOST_AT_ONCE = 2**21
"""Numbers that are encoded at a time."""


@dataclass(frozen=True, eq=False)
class Featured:
    """An autoencoder, its table, and what the page shows of it."""

    name: str
    """What the page calls it: its tap, as residual.12."""
    autoencoder: Autoencoder
    tap: Tap
    table: FeatureTable
    strongest: Strongest
    order: Sequence[int]
    """The features that fire, the most interesting first."""
    drawn: tuple[int, ...]
    """Those drawn in full: with their grids, and as a value of the page's samples."""
    named: bool
    """Whether `drawn` was asked for by number."""


def encode_features(
    autoencoder: Autoencoder, activations: np.ndarray, features: Sequence[int]
) -> Float64[np.ndarray, "features tokens"]:
    """Some features of each activation; all have to be computed for that, so it goes by pieces."""
    rows = max(1, _MOST_AT_ONCE // autoencoder.features)
    wanted = list(features)
    pieces = [
        autoencoder.encode(activations[begin : begin + rows])[:, wanted] for begin in range(0, len(activations), rows)
    ]
    return np.concatenate([np.empty((0, len(wanted)), np.float32), *pieces]).T.astype(np.float64)
