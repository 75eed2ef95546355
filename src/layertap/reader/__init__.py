"""Reading activations back, to look at samples and to train from: `ActivationDataset`."""

from layertap.reader.dataset import ActivationDataset

__all__ = ["ActivationDataset"]
