"""Layertap reads transformer activations out of Qwen 2.5 models and stores them, exactly once, for
training SAEs.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from layertap.reader import ActivationDataset

__version__ = "0.2.0"
__all__ = ["ActivationDataset"]


def __getattr__(name: str) -> object:
    """`ActivationDataset`, imported when it is asked for: the commands start without it."""
    if name == "ActivationDataset":
        from layertap.reader import ActivationDataset

        return ActivationDataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
