"""The flags of `layertap compare`: one field, one flag, one sentence."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from layertap.config.arguments import LAYERS, Flag
from layertap.config.checks import require
from layertap.core.taps import Site


@dataclass(frozen=True)
class CompareConfig:
    """Hold activations of another tool against our own, and say what they are."""

    dump: Annotated[tyro.conf.Positional[str], Flag(metavar="DUMP")]
    """A safetensors, .npy or .npz file with token ids, a folder of safetensors or .npy files,
    SAELens' cached activations, or an output of Layertap."""

    model_path: Annotated[str, Flag(metavar="MODEL", needed="required")]
    """The model that the activations should be of: a folder with a checkpoint, or a model of the
    Hugging Face Hub."""

    revision: Annotated[str | None, Flag(metavar="REVISION", default="the Hub's main branch")] = None
    """A branch, tag or commit of a model on the Hub."""

    token_ids: Annotated[str | None, Flag(metavar="FILE", default="those in the dump")] = None
    """The token ids of the dump, where it has none: .npy, .npz, safetensors, or JSON lists."""

    layers: Annotated[tuple[int, ...], LAYERS, Flag(default="all layers")] = ()
    """Which layers an array may be of, as 6 12 or 6,12 or 1-3 or all."""

    sites: Annotated[tuple[Site, ...], Flag(default="all sites")] = ()
    """Which sites an array may be of."""

    max_samples: int = 4
    """Compare the first so many samples."""

    max_tokens: int = 256
    """Compare the first so many tokens of each sample; fewer where the memory asks for it."""

    json: bool = False
    """Print all of it as JSON, with the error of each token."""

    def __post_init__(self) -> None:
        """Refuse to compare nothing; raises UsageError."""
        for name in ("max_samples", "max_tokens"):
            require(getattr(self, name) >= 1, f"--{name} must be at least 1, not {getattr(self, name)}")
