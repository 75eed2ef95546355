"""The flags of `layertap view`: one field, one flag, one sentence."""

import math
from dataclasses import dataclass
from typing import Annotated

import tyro

from layertap.config.arguments import LAYERS, Flag
from layertap.config.checks import require, require_counts
from layertap.core.taps import Site


@dataclass(frozen=True)
class ViewConfig:
    """Write what a run holds into one page of HTML, and look at it in a browser."""

    path: Annotated[tyro.conf.Positional[str], Flag(metavar="FOLDER")]
    """The output of one or many runs: a folder, or a URL such as gs://bucket/activations."""

    out: Annotated[str, Flag(metavar="FILE")] = "layertap.html"
    """Where to write the page. It holds all its data, and needs no network."""

    terminal: bool = False
    """Show one sample here, the first of --samples, as `layertap inspect` does; write no page."""

    open: bool = False
    """Show the page in the browser when it is written."""

    samples: Annotated[tuple[int, ...], Flag(metavar="SAMPLE_IDX ...", default="the first, as many as fit")] = ()
    """Which samples to show, by their sample_idx."""

    layers: Annotated[tuple[int, ...], LAYERS, Flag(default="all layers")] = ()
    """Which layers to show, as 6 12 or 6,12 or 1-3 or all."""

    sites: Annotated[tuple[Site, ...], Flag(default="all sites")] = ()
    """Which activations to show."""

    channels: Annotated[tuple[int, ...], Flag(metavar="CHANNEL ...", default="none")] = ()
    """Channels whose values are shown too, counted from 0."""

    sae: Annotated[str | None, Flag(metavar="FOLDER", default="none")] = None
    """A sparse autoencoder that SAELens saved. What its features give is shown at its layer."""

    sae_tap: Annotated[str | None, Flag(metavar="SITE.LAYER", default="as --sae says")] = None
    """Where the autoencoder was trained, such as residual.12."""

    features: Annotated[tuple[int, ...], Flag(metavar="FEATURE ...", default="the most active")] = ()
    """Which features of --sae to show, counted from 0."""

    max_samples: Annotated[int, Flag(metavar="SAMPLES")] = 50
    """The most samples to show."""

    max_mb: Annotated[float, Flag(metavar="MB")] = 20.0
    """The largest page, in units of 10^6 bytes. It shows fewer samples where they would not fit."""

    tokenizer: Annotated[str | None, Flag(metavar="MODEL", default="that of the run")] = None
    """A folder with the run's tokenizer, where it is not where the run had it."""

    def __post_init__(self) -> None:
        """Refuse what would show nothing; raises UsageError."""
        require_counts(self, "max_samples")
        require(0 < self.max_mb < math.inf, f"--max_mb must be positive, not {self.max_mb}")
        require(min(self.channels, default=0) >= 0, "--channels counts channels from 0")
        require(min(self.features, default=0) >= 0, "--features counts features from 0")
        require(self.sae is not None or not (self.features or self.sae_tap), "--features, --sae_tap: give --sae")
