"""`layertap view --neuronpedia FOLDER`: the counts of features, for Neuronpedia's importer.

The folder gets a folder for each autoencoder, with its name on the page. The names of the model and
the autoencoders in Neuronpedia come from their paths. `write_neuronpedia` accepts other names.
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
    """Write the files of each autoencoder, and return a sentence about them.

    The sentence is empty if you did not ask for them. `show` is called with bytes. Raises
    UsageError where the run's tokenizer was not found or a folder holds files of another call,
    StorageError where a file cannot be written.
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
    """Return a function that takes samples and calls `show` with about as many bytes."""
    size = 4 * width * (dataset.tokens // max(len(dataset), 1))
    return lambda done, total: show(done * size, total * size)


def _folder_name(name: str) -> str:
    """Turn `residual.12 (2)` into a folder name that needs no quotes: residual.12-2."""
    return name.replace(" (", "-").removesuffix(")")
