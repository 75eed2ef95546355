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
    """Write the content of a run into one HTML page, and look at it in a browser."""

    path: Annotated[tyro.conf.Positional[str], Flag(metavar="FOLDER")]
    """The output of one or many runs: a folder, or a URL such as gs://bucket/activations."""

    out: Annotated[str, Flag(metavar="FILE")] = "layertap.html"
    """Where to write the page. It contains all its data and needs no network."""

    terminal: bool = False
    """Write no page; show the first of --samples in the terminal, as `layertap inspect` does."""

    open: bool = False
    """Open the page in the browser once it is written."""

    samples: Annotated[tuple[int, ...], Flag(metavar="SAMPLE_IDX ...", default="the first, as many as fit")] = ()
    """Which samples to show, by their sample_idx."""

    layers: Annotated[tuple[int, ...], LAYERS, Flag(default="all layers")] = ()
    """Which layers to show: 6 12 or 6,12 or 1-3 or all."""

    sites: Annotated[tuple[Site, ...], Flag(default="all sites")] = ()
    """Which sites to show."""

    channels: Annotated[tuple[int, ...], Flag(metavar="CHANNEL ...", default="none")] = ()
    """Channels whose values to show too, counted from 0."""

    sae: Annotated[tuple[str, ...], Flag(metavar="FOLDER ...", default="none")] = ()
    """Autoencoders of SAELens or dictionary_learning. The page shows what features fire on."""

    sae_tap: Annotated[tuple[str, ...], Flag(metavar="SITE.LAYER ...", default="as --sae says")] = ()
    """Where they were trained, such as residual.12: one for each folder, or for each that does not
    say it."""

    features: Annotated[tuple[int, ...], Flag(metavar="FEATURE ...", default="40 that stand out")] = ()
    """Which features of each of --sae to draw in full, counted from 0; all are listed."""

    neuronpedia: Annotated[str | None, Flag(metavar="FOLDER", default="none")] = None
    """Also write features as Neuronpedia imports them, in a folder for each of --sae below this."""

    max_samples: Annotated[int, Flag(metavar="SAMPLES")] = 50
    """The most samples to show."""

    max_mb: Annotated[float, Flag(metavar="MB")] = 20.0
    """The largest page, in units of 10^6 bytes. Samples that do not fit are left out."""

    tokenizer: Annotated[str | None, Flag(metavar="MODEL", default="that of the run")] = None
    """A folder with the run's tokenizer, if it has moved since the run."""

    def __post_init__(self) -> None:
        """Refuse values that would show nothing; raises UsageError."""
        require_counts(self, "max_samples")
        require(0 < self.max_mb < math.inf, f"--max_mb must be positive, not {self.max_mb}")
        require(min(self.channels, default=0) >= 0, "--channels must not be negative; channels are counted from 0")
        require(min(self.features, default=0) >= 0, "--features must not be negative; features are counted from 0")
        require(
            bool(self.sae) or not (self.features or self.sae_tap or self.neuronpedia),
            "--features, --sae_tap and --neuronpedia need --sae",
        )
        require(
            not (self.terminal and self.neuronpedia), "--terminal writes nothing, so --neuronpedia cannot go with it"
        )
