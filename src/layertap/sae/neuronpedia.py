"""A table of features as the files that Neuronpedia's importer takes: `batch-0.json`, ...

The format is SAEDashboard's (`sae_dashboard.neuronpedia.neuronpedia_dashboard`). Neuronpedia's own
script `convert-saedashboard-to-neuronpedia-export.py` makes from it what you upload. A test reads
our files with the real classes (`make contract`).

The format allows empty fields for what a run does not hold: logits (`pos_str`, `neg_str`, which
need the model's unembedding) and correlations. The histogram's bars are the table's bins, each at
its middle, so they double in width. For each sample in which a feature is largest, we write a
window of tokens around that place. Tokens that the counts exclude have 0 there, or a sink would
look like the place where it fires most.

This takes a second walk over the listed samples. Memory holds 8 bytes for each token of a window,
50 MB for 4,096 features.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from layertap.core.columns import FIRST, SINK, SPECIAL
from layertap.core.strict_json import dump_json
from layertap.errors import UsageError
from layertap.objects.files import atomic_write
from layertap.reader.config import Flag
from layertap.reader.dataset import ActivationDataset
from layertap.reader.sample import Sample
from layertap.sae.autoencoder import Autoencoder
from layertap.sae.count import EXCLUDED
from layertap.sae.table import FeatureTable

_FEATURES = 128
"""Features in a file."""
_BEFORE, _AFTER = 95, 32
"""Tokens of a window before and after the place where a feature is largest."""
_CHUNK = 1024
"""Tokens to encode at once."""
_DIGITS = 3
_BITS: Mapping[str, int] = {"first": FIRST, "special": SPECIAL, "sink": SINK}
_EMPTY = (
    *("neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1"),
    *("correlated_neurons_indices", "correlated_neurons_l1", "correlated_neurons_pearson"),
    *("correlated_features_indices", "correlated_features_l1", "correlated_features_pearson"),
    *("neg_str", "neg_values", "pos_str", "pos_values"),
    *("logits_hist_data_bar_heights", "logits_hist_data_bar_values", "decoder_weights_dist", "vector"),
)
_NO_TOKEN = -1


def write_neuronpedia(
    dataset: ActivationDataset,
    autoencoder: Autoencoder,
    table: FeatureTable,
    folder: Path,
    *,
    model_id: str,
    sae_set: str,
    prompts: str = "",
    exclude: Collection[Flag] = EXCLUDED,
    show: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Path, ...]:
    """Write all features that fire at all, and return the files.

    `model_id` and `sae_set` are Neuronpedia's names of the model and of the set of autoencoders.
    `prompts` is the dataset's name on the Hugging Face Hub. `exclude` is what `table` was counted
    with. `show` gets the number of samples that are read, and of all samples. Raises UsageError if
    the run's tokenizer is missing, or if the folder has more batches, of another call, which would
    be uploaded with these; StorageError if a file cannot be written.
    """
    decode = dataset.decode
    fired = np.flatnonzero(table.active).tolist()
    _refuse_others(folder, {f"batch-{number}.json" for number in range(-(-len(fired) // _FEATURES))})
    ids, values = _windows(dataset, autoencoder, table, exclude, show)
    texts = {id_: decode([id_]) for id_ in np.unique(ids).tolist() if id_ != _NO_TOKEN}
    paths = []
    for number, begin in enumerate(range(0, len(fired), _FEATURES)):
        features = [_feature(table, own, ids[own], values[own], texts) for own in fired[begin : begin + _FEATURES]]
        of_run = {"n_prompts_total": table.samples, "n_tokens_in_prompt": dataset.tokens // max(len(dataset), 1)}
        batch = {
            "model_id": model_id,
            "layer": table.tap.layer,
            "sae_set": sae_set,
            "sae_id_suffix": None,
            "features": [feature | of_run | {"dataset": prompts} for feature in features],
        }
        paths.append(folder / f"batch-{number}.json")
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(paths[-1]) as file:
            file.write(dump_json(batch).encode())
    return tuple(paths)


def _refuse_others(folder: Path, own: Collection[str]) -> None:
    others = sorted(path.name for path in folder.glob("batch-*.json") if path.name not in own)
    if others:
        raise UsageError(
            f"{folder}: has {others[0]} of another autoencoder or run, which would be uploaded too; delete its files,"
            " or name another folder"
        )


def _windows(
    dataset: ActivationDataset,
    autoencoder: Autoencoder,
    table: FeatureTable,
    exclude: Collection[Flag],
    show: Callable[[int, int], None],
) -> tuple[np.ndarray, np.ndarray]:
    """Return token ids and values around each place, [features, places, window].

    Beyond a sample's ends, and where there is no place, the id is -1.
    """
    shape = (*table.top_samples.shape, _BEFORE + 1 + _AFTER)
    ids, values = np.full(shape, _NO_TOKEN, np.int32), np.zeros(shape, np.float32)
    bits = sum(_BITS[name] for name in exclude if name in _BITS)
    listed = np.unique(table.top_samples[table.top_samples >= 0]).tolist()
    for done, number in enumerate(listed):
        features, places = np.nonzero(table.top_samples == number)
        rows = table.top_tokens[features, places][:, None] + np.arange(-_BEFORE, _AFTER + 1)
        sample = dataset[number]
        inside = (rows >= 0) & (rows < len(sample))
        ids[features, places] = np.where(inside, sample.token_ids[np.clip(rows, 0, len(sample) - 1)], _NO_TOKEN)
        for begin, found in _encoded(sample, autoencoder, table, bits):
            pair, place = np.nonzero((rows >= begin) & (rows < begin + len(found)))
            row = rows[pair, place] - begin
            values[features[pair], places[pair], place] = found[row, features[pair]]
        show(done + 1, len(listed))
    return ids, values


def _encoded(
    sample: Sample, autoencoder: Autoencoder, table: FeatureTable, bits: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the features of a sample, some tokens at a time; 0 at excluded tokens."""
    activation = sample.activation(*table.tap)
    counted = (sample.flags(*table.tap) & bits) == 0
    counted &= np.isfinite(sample.norms(*table.tap))
    for begin in range(0, len(sample), _CHUNK):
        own = slice(begin, begin + _CHUNK)
        x = np.where(counted[own, None], activation[own].astype(np.float32), np.float32(0))
        yield begin, np.where(counted[own, None], autoencoder.encode(x), np.float32(0))


def _feature(
    table: FeatureTable, feature: int, ids: np.ndarray, values: np.ndarray, texts: Mapping[int, str]
) -> dict[str, Any]:
    bins = np.flatnonzero(table.histogram[feature])
    bins = np.arange(bins[0], bins[-1] + 1)
    shown = (table.top_samples[feature] >= 0).tolist()
    pairs = [pair for pair, there in zip(zip(ids, values, strict=True), shown, strict=True) if there]
    return {
        "feature_index": feature,
        **{name: [] for name in _EMPTY},
        "frac_nonzero": float(table.density[feature]),
        "freq_hist_data_bar_values": [_rounded((table.edges[at] + table.edges[at + 1]) / 2) for at in bins],
        "freq_hist_data_bar_heights": table.histogram[feature, bins].tolist(),
        "activations": [_activation(own, value, texts, _rounded(table.largest[feature])) for own, value in pairs],
    }


def _activation(ids: np.ndarray, values: np.ndarray, texts: Mapping[int, str], largest: float) -> dict[str, Any]:
    """Return one sample. A bin of -1 says that it is one of those with the largest values."""
    inside = np.flatnonzero(ids != _NO_TOKEN)
    return {
        "bin_min": -1,
        "bin_max": largest,
        "bin_contains": -1,
        "qualifying_token_index": int(np.searchsorted(inside, _BEFORE)),
        "tokens": [texts[id_] for id_ in ids[inside].tolist()],
        "values": _all_rounded(values[inside]),
    }


def _rounded(value: float) -> float:
    return round(float(value), _DIGITS)


def _all_rounded(values: np.ndarray) -> Sequence[float]:
    return [_rounded(value) for value in values.tolist()]
