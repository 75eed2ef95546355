"""Layertap reads the activations of language models, stores them exactly once, and hands them to
whoever trains sparse autoencoders.

    Model               texts, conversations, token ids or ARC tasks in; samples out
    extract             the command `layertap extract` as a function
    ActivationDataset   what runs wrote, as samples and as batches to train from
    ActivationStream    the same batches from memory, while a model runs
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

# Imported when they are asked for: the commands start without them.
_HOMES = {
    "ActivationDataset": "layertap.reader.dataset",
    "ActivationStream": "layertap.api.stream",
    "Model": "layertap.api.model",
    "Sample": "layertap.reader.sample",
    "extract": "layertap.api.extraction",
}


def __getattr__(name: str) -> object:
    """What is public, from the room where it lives."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """What is public, and the version."""
    return sorted([*__all__, "__version__"])
