"""The flags of `layertap inspect`, as in `layertap.config`: one field, one flag, one sentence."""

from dataclasses import dataclass

import tyro

from layertap.errors import UsageError
from layertap.tap import Site


@dataclass(frozen=True)
class InspectConfig:
    """Show a shard to a person: its samples, and the norms at each layer and site; with --sample, its tokens."""

    path: tyro.conf.Positional[str]
    """The output folder of a run, or its URL (gs://bucket/activations/tpu_0)."""

    shard: int | None = None
    """Which shard, counted from 1; by default the one that holds --sample, or the first."""

    sample: int | None = None
    """Show the sample with this sample_idx, token by token, instead of the whole shard."""

    layer: tuple[int, ...] = ()
    """Only these layers; by default all that are stored. safetensors of other layers are not read."""

    site: tuple[Site, ...] = ()
    """Only these sites; by default all that are stored. Files of other sites are not read."""

    model_path: str | None = None
    """The checkpoint whose tokenizer decodes the tokens, a folder or a Hub id in this machine's cache; by default
    the one that the run had."""

    max_tokens: int = 40
    """With --sample, how many tokens are listed, half of them from the end; 0 lists all."""

    def __post_init__(self) -> None:
        """Refuse a negative number of tokens; raises UsageError."""
        if self.max_tokens < 0:
            raise UsageError(f"--max_tokens must not be negative, but is {self.max_tokens}; 0 lists all")
