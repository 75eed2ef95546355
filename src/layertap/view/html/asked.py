"""Which channels and features a page shows, found out from what `layertap view` was asked for."""

from collections.abc import Sequence

import numpy as np

from layertap.config.extract import local_path
from layertap.config.view import ViewConfig
from layertap.core.taps import Site, Tap
from layertap.errors import UsageError
from layertap.reader.dataset import ActivationDataset
from layertap.sae.autoencoder import Autoencoder
from layertap.sae.load import load_autoencoder
from layertap.view.html.figures import Asked

_SHOWN = 8
"""Features, where none are named."""


def resolve_asked(config: ViewConfig, dataset: ActivationDataset, taps: Sequence[Tap]) -> Asked:
    """What is shown beside the values that are always shown.

    Raises UsageError where the autoencoder cannot be read, or was trained at a tap that is not
    shown, or has no such feature.
    """
    if config.sae is None:
        return Asked(config.channels)
    autoencoder = load_autoencoder(local_path(config.sae))
    tap = _tap(config, autoencoder, taps)
    if dataset.taps[tap] != autoencoder.width:
        raise UsageError(
            f"--sae {config.sae}: takes activations of width {autoencoder.width}; layer {tap.layer} at {tap.site} is"
            f" {dataset.taps[tap]} wide"
        )
    absent = [feature for feature in config.features if feature >= autoencoder.features]
    if absent:
        raise UsageError(f"--features {' '.join(map(str, absent))}: --sae has features 0 to {autoencoder.features - 1}")
    features = config.features or _most_active(autoencoder, dataset, tap)
    return Asked(config.channels, autoencoder, tap, features)


def _tap(config: ViewConfig, autoencoder: Autoencoder, taps: Sequence[Tap]) -> Tap:
    """Where the autoencoder was trained, as the flag says it, or its own folder."""
    named = autoencoder.tap
    if config.sae_tap is not None:
        site, _, layer = config.sae_tap.rpartition(".")
        found: Site | None = next((tap.site for tap in taps if tap.site == site), None)
        named = Tap(int(layer), found) if found is not None and layer.isdecimal() else None
    if named is None:
        raise UsageError("--sae: its folder does not say at which layer and site; give --sae_tap, such as residual.12")
    if named not in taps:
        shown = ", ".join(f"{tap.site}.{tap.layer}" for tap in taps)
        raise UsageError(f"--sae: was trained at {named.site}.{named.layer}, which is not shown; shown are {shown}")
    return named


def _most_active(autoencoder: Autoencoder, dataset: ActivationDataset, tap: Tap) -> tuple[int, ...]:
    """The features with the largest sums over the first sample but for its first token, which is
    a sink in most models.
    """
    if not len(dataset):
        return ()
    activation = dataset[0].activation(*tap)
    sums = autoencoder.encode(activation[1:] if len(activation) > 1 else activation).sum(axis=0)
    best = np.argsort(-sums, kind="stable")[:_SHOWN]
    return tuple(sorted(int(feature) for feature in best if sums[feature] > 0))
