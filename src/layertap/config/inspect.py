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
    """Show one sample token by token instead of the whole shard: the sample with this sample_idx,
    or the first sample of this task."""

    top: Annotated[int, Flag(metavar="TOKENS", default="none")] = 0
    """List this many tokens with the largest norms in the shard or sample."""

    layer: Annotated[tuple[int, ...], LAYERS, Flag(default="all layers")] = ()
    """Which layers to show: 6 12 or 6,12 or 1-3 or all."""

    site: Annotated[tuple[Site, ...], Flag(default="all sites")] = ()
    """Which sites to show."""

    model_path: Annotated[str | None, Flag(metavar="MODEL", default="the model of the run")] = None
    """The model whose tokenizer decodes the tokens: a folder with a checkpoint, or a model in this
    machine's Hugging Face cache."""

    max_samples: int = 40
    """Of a whole shard: how many samples to list. 0 lists all."""

    max_tokens: int = 40
    """With --sample: how many tokens to list, half of them from the end. 0 lists all."""

    json: bool = False
    """Print everything as JSON; with --sample, every token."""

    def __post_init__(self) -> None:
        """Refuse a negative number of tokens or samples; raises UsageError."""
        require(self.top >= 0, f"--top must not be negative, but is {self.top}")
        require(self.max_samples >= 0, f"--max_samples must not be negative, but is {self.max_samples}; 0 lists all")
        require(self.max_tokens >= 0, f"--max_tokens must not be negative, but is {self.max_tokens}; 0 lists all")
