"""The flags of `layertap demo`: one field, one flag, one sentence."""

from dataclasses import dataclass
from typing import Annotated

from layertap.config.arguments import Flag
from layertap.config.checks import require_counts


@dataclass(frozen=True)
class DemoConfig:
    """Make a tiny model and ARC-style tasks, extract from them, and verify the output."""

    output_dir: Annotated[str, Flag(metavar="FOLDER")] = "./layertap-demo"
    """Where to write the model, the tasks and the activations."""

    num_tasks: int = 24
    """How many tasks to make."""

    seed: Annotated[int, Flag(metavar="SEED")] = 0
    """The seed of the weights and the tasks."""

    def __post_init__(self) -> None:
        """Refuse an empty demo; raises UsageError."""
        require_counts(self, "num_tasks")
