"""The flags of `layertap compare`: one field, one flag, one sentence."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from layertap.config.arguments import LAYERS, Flag
from layertap.config.checks import require
from layertap.core.taps import Site


@dataclass(frozen=True)
class CompareConfig:
    """Compare another tool's activations with Layertap's own, and say what they are."""

    dump: Annotated[tyro.conf.Positional[str], Flag(metavar="DUMP")]
    """A safetensors, .npy or .npz file with token ids, a folder of safetensors or .npy files,
    SAELens' cached activations, or an output of Layertap."""

    model_path: Annotated[str, Flag(metavar="MODEL", needed="required")]
    """The model that should have made the activations: a folder with a checkpoint, or a model on
    the Hugging Face Hub."""

    revision: Annotated[str | None, Flag(metavar="REVISION", default="the Hub's main branch")] = None
    """A branch, tag or commit of a model on the Hub."""

    token_ids: Annotated[str | None, Flag(metavar="FILE", default="those in the dump")] = None
    """The token ids, if the dump has none: .npy, .npz, safetensors, or JSON lists."""

    layers: Annotated[tuple[int, ...], LAYERS, Flag(default="all layers")] = ()
    """Which layers to consider for each array: 6 12 or 6,12 or 1-3 or all."""

    sites: Annotated[tuple[Site, ...], Flag(default="all sites")] = ()
    """Which sites to consider for each array."""

    max_samples: int = 4
    """How many samples to compare, from the first."""

    max_tokens: int = 256
    """How many tokens of each sample to compare, from the first. Fewer if memory is short."""

    json: bool = False
    """Print everything as JSON, with the error of each token."""

    def __post_init__(self) -> None:
        """Refuse to compare nothing; raises UsageError."""
        for name in ("max_samples", "max_tokens"):
            require(getattr(self, name) >= 1, f"--{name} must be at least 1, not {getattr(self, name)}")
