"""Which channels and features a page shows, from the settings of `layertap view`."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from layertap.config.extract import local_path
from layertap.config.view import ViewConfig
from layertap.core.taps import Site, Tap
from layertap.errors import UsageError
from layertap.reader.dataset import ActivationDataset
from layertap.sae.autoencoder import Autoencoder
from layertap.sae.load import load_autoencoder
from layertap.sae.table import FeatureTable
from layertap.view.html.featured import Featured
from layertap.view.html.figures import Asked
from layertap.view.html.interest import find_strongest, order_by_interest

_DRAWN = 40
"""How many features are drawn in full, where you name none."""

Count = Callable[[ActivationDataset, Autoencoder, Tap], FeatureTable]


def resolve_asked(config: ViewConfig, dataset: ActivationDataset, taps: Sequence[Tap], count: Count) -> Asked:
    """Return what the page shows in addition to the values that it always shows.

    `count` makes the table of an autoencoder, after all of them were checked. Raises UsageError
    where an autoencoder cannot be read, or was trained at a tap that the page does not show, or has
    no such feature.
    """
    found = [(folder, load_autoencoder(local_path(folder))) for folder in config.sae]
    placed = [
        (folder, autoencoder, _check(folder, autoencoder, tap, dataset, taps))
        for (folder, autoencoder), tap in zip(found, _taps(config, [own for _, own in found], taps), strict=True)
    ]
    for folder, autoencoder, _ in placed:
        absent = [feature for feature in config.features if feature >= autoencoder.features]
        if absent:
            raise UsageError(
                f"--features {' '.join(map(str, absent))}: {folder} has features 0 to {autoencoder.features - 1}"
            )
    names = _names([tap for _, _, tap in placed])
    featured = [
        _feature(config, name, autoencoder, tap, count(dataset, autoencoder, tap))
        for name, (_, autoencoder, tap) in zip(names, placed, strict=True)
    ]
    return Asked(config.channels, tuple(featured))


def _feature(config: ViewConfig, name: str, autoencoder: Autoencoder, tap: Tap, table: FeatureTable) -> Featured:
    strongest = find_strongest(table)
    order = order_by_interest(table, strongest)
    most = max(1, _DRAWN // len(config.sae))
    drawn = tuple(dict.fromkeys(config.features)) or tuple(order[:most])
    return Featured(name, autoencoder, tap, table, strongest, order, drawn, named=bool(config.features))


def _names(taps: Sequence[Tap]) -> Iterator[str]:
    """Name each autoencoder by its tap, and number those that share one."""
    own = [f"{tap.site}.{tap.layer}" for tap in taps]
    seen: Counter[str] = Counter()
    for name in own:
        seen[name] += 1
        yield name if own.count(name) == 1 else f"{name} ({seen[name]})"


def _taps(config: ViewConfig, found: Sequence[Autoencoder], taps: Sequence[Tap]) -> Iterator[Tap | None]:
    """Yield the tap where each autoencoder was trained.

    If the flag names one tap for each, these are the taps. Otherwise each folder says its own, and
    the flag names those of the folders that do not.
    """
    told = [_read_tap(named, taps) for named in config.sae_tap]
    if len(told) == len(found):
        yield from told
        return
    silent = sum(own.tap is None for own in found)
    if len(told) != silent:
        raise UsageError(
            f"--sae_tap: gives {len(told)}; give one for each of the {len(found)} folders of --sae, or for the {silent}"
            " that do not say at which layer and site they were trained"
        )
    rest = iter(told)
    yield from (next(rest) if own.tap is None else own.tap for own in found)


def _read_tap(named: str, taps: Sequence[Tap]) -> Tap | None:
    site, _, layer = named.rpartition(".")
    found: Site | None = next((tap.site for tap in taps if tap.site == site), None)
    return Tap(int(layer), found) if found is not None and layer.isdecimal() else None


def _check(
    folder: str, autoencoder: Autoencoder, tap: Tap | None, dataset: ActivationDataset, taps: Sequence[Tap]
) -> Tap:
    """Return the tap. Refuse one that the page does not show, or that has another width."""
    shown = ", ".join(f"{one.site}.{one.layer}" for one in taps)
    if tap is None:
        raise UsageError(
            f"--sae {folder}: does not say at which layer and site it was trained; give --sae_tap, one of {shown}"
        )
    if tap not in taps:
        raise UsageError(
            f"--sae {folder}: was trained at {tap.site}.{tap.layer}, which is not shown; the page shows {shown}"
        )
    if dataset.taps[tap] != autoencoder.width:
        raise UsageError(
            f"--sae {folder}: takes activations of width {autoencoder.width}; layer {tap.layer} at {tap.site} is"
            f" {dataset.taps[tap]} wide"
        )
    return tap
