"""How a run stores shards: which taps, in which dtype and format, in which files."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from layertap.core.taps import Site, Tap
from layertap.shards.quantised import dtype_name


@dataclass(frozen=True)
class ShardFormat:
    """How to encode shards."""

    taps: Mapping[Tap, int]
    """The taps to store, with the width of each."""
    dtype: np.dtype
    compress: bool
    """Whether to gzip pickles. safetensors files are never compressed."""
    name: Literal["pickle", "safetensors"] = "pickle"
    keep_nonfinite: bool = False
    """True: store and count activations with a NaN or an infinity. False: raise StorageError."""
    by_loops: bool = False
    """Whether numba's loops convert and measure. `encode` decides this for each shard."""

    @property
    def stored_as(self) -> str:
        """The dtype's name in the manifest."""
        return dtype_name(self.dtype)

    @property
    def bytes_per_token(self) -> int:
        """How many bytes of activations a token adds, before compression."""
        return sum(self.taps.values()) * self.dtype.itemsize

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers among the taps, ascending."""
        return tuple(sorted({tap.layer for tap in self.taps}))

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites among the taps, in their order."""
        return tuple(dict.fromkeys(tap.site for tap in self.taps))

    def files(self, index: int) -> dict[str, str | None]:
        """Map each path of shard `index` (from 1) that holds activations to its site.

        The site is None for a file that holds all sites.
        """
        if self.name == "safetensors":
            return {f"shard_{index:04d}.safetensors": None}
        name = f"shard_{index:04d}.pkl" + (".gz" if self.compress else "")
        alone = len(self.sites) == 1
        return {name if alone else f"{site}/{name}": site for site in self.sites}


def statistics_path(index: int) -> str:
    """Return the path of the statistics of shard `index`."""
    return f"statistics/shard_{index:04d}.safetensors"
