"""The flags of `layertap inspect`: one field, one flag, one sentence."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from layertap.config.arguments import LAYERS, Flag
from layertap.config.checks import require
from layertap.core.taps import Site


@dataclass(frozen=True)
class InspectConfig:
    """Show the samples and norms of a shard, or the tokens of one sample."""

    path: Annotated[tyro.conf.Positional[str], Flag(metavar="FOLDER")]
    """The output folder of a run, or its URL, such as gs://bucket/activations/tpu_0."""

    shard: Annotated[int | None, Flag(default="the one that holds --sample, or the first")] = None
    """Which shard to show, counted from 1."""

    sample: Annotated[str | None, Flag(metavar="SAMPLE_IDX or TASK")] = None
    """Show the sample with this sample_idx, or the first one of this task, token by token, instead
    of the whole shard."""

    top: Annotated[int, Flag(metavar="TOKENS", default="none")] = 0
    """List so many tokens with the largest norms, of the shard or of the sample."""

    layer: Annotated[tuple[int, ...], LAYERS, Flag(default="all layers")] = ()
    """Which layers to show, as 6 12 or 6,12 or 1-3 or all."""

    site: Annotated[tuple[Site, ...], Flag(default="all sites")] = ()
    """Which activations to show."""

    model_path: Annotated[str | None, Flag(metavar="MODEL", default="the model of the run")] = None
    """Whose tokenizer decodes the tokens: a folder with a checkpoint, or a model in the Hugging
    Face cache of this machine."""

    max_tokens: int = 40
    """With --sample: how many tokens to list, half of them from the end. 0 lists all."""

    json: bool = False
    """Print all of it as JSON, with --sample every token."""

    def __post_init__(self) -> None:
        """Refuse a negative number of tokens; raises UsageError."""
        require(self.top >= 0, f"--top must not be negative, but is {self.top}")
        require(self.max_tokens >= 0, f"--max_tokens must not be negative, but is {self.max_tokens}; 0 lists all")
