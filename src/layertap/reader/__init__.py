"""Read activations back, to look at samples and to train from them: `ActivationDataset`."""

from layertap.reader.dataset import ActivationDataset
from layertap.reader.scaling import AffineMap, Normalisation, fold

__all__ = ["ActivationDataset", "AffineMap", "Normalisation", "fold"]
