"""The flags of `layertap export`: one field, one flag, one sentence."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from layertap.config.arguments import LAYERS, Flag
from layertap.config.checks import require, require_counts
from layertap.core.taps import Site

Form = Literal["saelens", "memmap", "hf"]
Dtype = Literal["float32", "float16", "bfloat16"]
_Left = Literal["first", "special", "sink", "nonfinite"]
_Taken = Literal["cells", "answer", "template", "text", "system", "user", "assistant", "tool"]


@dataclass(frozen=True)
class ExportConfig:
    """Copy activations into a folder that a trainer reads, or go on with that."""

    source: Annotated[tyro.conf.Positional[str], Flag(metavar="SOURCE")]
    """The output folder of one or many runs, or its URL."""

    destination: Annotated[tyro.conf.Positional[str], Flag(metavar="DEST")]
    """A new folder, or one in which the same command was stopped."""

    to: Form
    """Which format: saelens is a cache that SAELens trains from, memmap plain arrays that numpy
    maps, hf a folder that the datasets library opens, one row a sample."""

    layers: Annotated[tuple[int, ...], LAYERS, Flag(default="all layers")] = ()
    """Which layers, as 6 12 or 6,12 or 1-3 or all."""

    sites: Annotated[tuple[Site, ...], Flag(default="all sites")] = ()
    """Which sites."""

    exclude: Annotated[tuple[_Left, ...], Flag(default="nothing")] = ()
    """Leave out tokens with any of these flags; sink and nonfinite: at any of the layers and
    sites."""

    include: Annotated[tuple[_Taken, ...], Flag(default="all tokens")] = ()
    """Only tokens that are one of these."""

    dtype: Annotated[Dtype | None, Flag(default="what is stored, or float32 where the format has no bfloat16")] = None
    """As what values are written."""

    context_size: Annotated[int, Flag(metavar="TOKENS")] = 128
    """With --to saelens: how many tokens a row has; SAELens must be given the same."""

    sharded_dataset: Annotated[str | None, Flag(metavar="FOLDER")] = None
    """Of shards that workers claimed: the folder or URL of the sharded dataset, whose
    done-manifests tell which attempts count."""

    check: bool = True
    """Read everything back in the end, and compare it with the source."""

    def __post_init__(self) -> None:
        """Refuse values that contradict each other; raises UsageError."""
        require("://" not in self.destination, f"{self.destination}: give a folder of this machine to export to")
        require(self.destination != "", "DEST is empty; give a folder to export to")
        require_counts(self, "context_size")
        require(
            self.dtype != "bfloat16" or self.to == "memmap",
            f"--to {self.to} has no bfloat16, since Arrow has none; give --dtype float32, or --to memmap",
        )
        require(
            self.to == "saelens" or self.context_size == 128,
            f"--context_size belongs to --to saelens; --to {self.to} cuts no contexts",
        )
