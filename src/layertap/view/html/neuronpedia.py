"""`layertap view --neuronpedia FOLDER`: what was counted of features, for Neuronpedia's importer.

Below the folder is one for each autoencoder, called as the page calls it. What Neuronpedia calls
model and autoencoders follows from their paths; `write_neuronpedia` itself takes other names.
"""

from collections.abc import Callable
from pathlib import Path

from layertap.config.extract import local_path
from layertap.config.view import ViewConfig
from layertap.reader.dataset import ActivationDataset
from layertap.sae.neuronpedia import write_neuronpedia
from layertap.view.html.figures import Asked


def write_uploads(
    config: ViewConfig, dataset: ActivationDataset, asked: Asked, show: Callable[[int, int], None]
) -> str:
    """Write the files of each autoencoder; returns what is said of them, and nothing where they
    were not asked for. `show` is called with bytes.

    Raises UsageError where the run's tokenizer is not at hand or a folder holds files of another
    call, StorageError where a file cannot be written.
    """
    if config.neuronpedia is None:
        return ""
    folder = local_path(config.neuronpedia)
    written = 0
    for path, own in zip(config.sae, asked.featured, strict=True):
        written += len(
            write_neuronpedia(
                dataset,
                own.autoencoder,
                own.table,
                folder / _folder_name(own.name),
                model_id=Path(dataset.model_path).name.lower(),
                sae_set=local_path(path).resolve().name,
                show=_in_bytes(show, dataset, own.autoencoder.width),
            )
        )
    return f"; {written} files for Neuronpedia below {folder}"


def _in_bytes(show: Callable[[int, int], None], dataset: ActivationDataset, width: int) -> Callable[[int, int], None]:
    """Takes samples, and calls `show` with about as many bytes as these have."""
    size = 4 * width * (dataset.tokens // max(len(dataset), 1))
    return lambda done, total: show(done * size, total * size)


def _folder_name(name: str) -> str:
    """`residual.12 (2)` as a folder that needs no quotes: residual.12-2."""
    return name.replace(" (", "-").removesuffix(")")
