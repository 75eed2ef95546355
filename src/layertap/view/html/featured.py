"""An autoencoder as a page shows it: its counts, and which features are drawn in full."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from layertap.core.taps import Tap
from layertap.sae.autoencoder import Autoencoder
from layertap.sae.table import FeatureTable
from layertap.view.html.interest import Strongest

_MOST_AT_ONCE = 2**21
"""How many numbers are encoded at a time."""


@dataclass(frozen=True, eq=False)
class Featured:
    """An autoencoder, its table, and the features that the page shows."""

    name: str
    """Its name on the page: its tap, such as residual.12."""
    autoencoder: Autoencoder
    tap: Tap
    table: FeatureTable
    strongest: Strongest
    order: Sequence[int]
    """The features that fire, the most interesting first."""
    drawn: tuple[int, ...]
    """The features drawn in full: with their grids, and as a value of the page's samples."""
    named: bool
    """Whether you named the drawn features by number."""


def encode_features(
    autoencoder: Autoencoder, activations: np.ndarray, features: Sequence[int]
) -> Float64[np.ndarray, "features tokens"]:
    """Return some features of each activation. All have to be computed, so this works in pieces."""
    rows = max(1, _MOST_AT_ONCE // autoencoder.features)
    wanted = list(features)
    pieces = [
        autoencoder.encode(activations[begin : begin + rows])[:, wanted] for begin in range(0, len(activations), rows)
    ]
    return np.concatenate([np.empty((0, len(wanted)), np.float32), *pieces]).T.astype(np.float64)
