"""Layertap runs a language model over your data, stores its activations exactly once, and feeds
them to the training of sparse autoencoders.

    Model               runs over texts, conversations, token ids or ARC tasks; gives samples
    extract             the command `layertap extract` as a function
    ActivationDataset   reads the output of runs, as samples and as training batches
    ActivationStream    gives the same batches from memory, while a model runs
    Sample              one sequence of tokens with its activations
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from layertap.api.extraction import extract
    from layertap.api.model import Model
    from layertap.api.stream import ActivationStream
    from layertap.reader.dataset import ActivationDataset
    from layertap.reader.sample import Sample

__version__ = "0.2.0"
__all__ = ["ActivationDataset", "ActivationStream", "Model", "Sample", "extract"]

# Imported on first use, so that the commands start without them.
_HOMES = {
    "ActivationDataset": "layertap.reader.dataset",
    "ActivationStream": "layertap.api.stream",
    "Model": "layertap.api.model",
    "Sample": "layertap.reader.sample",
    "extract": "layertap.api.extraction",
}


def __getattr__(name: str) -> object:
    """Import a public name from the room that defines it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Return the public names and `__version__`."""
    return sorted([*__all__, "__version__"])
