"""The flags of `layertap demo`: one field, one flag, one sentence."""

from dataclasses import dataclass
from typing import Annotated

from layertap.config.arguments import Flag
from layertap.config.checks import require_counts


@dataclass(frozen=True)
class DemoConfig:
    """Create a tiny model and ARC-style tasks, extract activations, and verify them."""

    output_dir: Annotated[str, Flag(metavar="FOLDER")] = "./layertap-demo"
    """Where to write the model, the tasks and the activations."""

    num_tasks: int = 24
    """How many tasks to create."""

    seed: Annotated[int, Flag(metavar="SEED")] = 0
    """The random seed for weights and tasks."""

    def __post_init__(self) -> None:
        """Refuse an empty demo; raises UsageError."""
        require_counts(self, "num_tasks")
