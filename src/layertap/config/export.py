"""The flags of `layertap export`: one field, one flag, one sentence."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from layertap.config.arguments import LAYERS, Flag
from layertap.config.checks import require, require_counts
from layertap.core.taps import Site

Form = Literal["saelens", "memmap", "hf"]
Dtype = Literal["float32", "float16", "bfloat16"]
_Left = Literal["first", "special", "prefix", "sink", "nonfinite"]
_Taken = Literal["cells", "answer", "template", "text", "system", "user", "assistant", "tool"]


@dataclass(frozen=True)
class ExportConfig:
    """Copy activations into a folder that a trainer reads, or resume a copy."""

    source: Annotated[tyro.conf.Positional[str], Flag(metavar="SOURCE")]
    """The output folder of one or many runs, or its URL."""

    destination: Annotated[tyro.conf.Positional[str], Flag(metavar="DEST")]
    """A new folder, or one where the same command was stopped."""

    to: Form
    """The format. saelens: a cache that SAELens trains from. memmap: plain arrays that numpy maps.
    hf: a folder that the datasets library opens, one row per sample."""

    layers: Annotated[tuple[int, ...], LAYERS, Flag(default="all layers")] = ()
    """Which layers to copy: 6 12 or 6,12 or 1-3 or all."""

    sites: Annotated[tuple[Site, ...], Flag(default="all sites")] = ()
    """Which sites to copy."""

    exclude: Annotated[tuple[_Left, ...], Flag(default="nothing")] = ()
    """Leave out tokens with any of these flags. sink and nonfinite apply at any of the layers and
    sites."""

    include: Annotated[tuple[_Taken, ...], Flag(default="all tokens")] = ()
    """Copy only tokens that are one of these."""

    dtype: Annotated[Dtype | None, Flag(default="as stored, or float32 if the format has no bfloat16")] = None
    """The number format of the copied values."""

    context_size: Annotated[int, Flag(metavar="TOKENS")] = 128
    """With --to saelens: how many tokens a row has. Give SAELens the same number."""

    sharded_dataset: Annotated[str | None, Flag(metavar="FOLDER")] = None
    """If workers claimed shards: the folder or URL of the sharded dataset. Its done-manifests
    record which attempts count."""

    check: bool = True
    """Read everything back at the end, and compare it with the source."""

    def __post_init__(self) -> None:
        """Refuse values that contradict each other; raises UsageError."""
        require("://" not in self.destination, f"{self.destination}: is a URL; give a local folder to export to")
        require(self.destination != "", "DEST is empty; give a folder to export to")
        require_counts(self, "context_size")
        require(
            self.dtype != "bfloat16" or self.to == "memmap",
            f"--to {self.to} has no bfloat16, because Arrow has none; give --dtype float32, or --to memmap",
        )
        require(
            self.to == "saelens" or self.context_size == 128,
            f"--context_size works only with --to saelens; --to {self.to} does not cut contexts",
        )
