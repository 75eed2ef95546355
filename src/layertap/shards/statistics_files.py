"""The statistics files, `statistics/shard_0001.safetensors` and so on, and how they are merged.

Each shard has one small file for all its taps, committed with it. Only files in the manifest are
merged. So an interrupted run counts nothing twice, and workers' folders are merged without reading
an activation.

Taps may differ in width, so the channels of all taps follow each other in one row.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from layertap.core.strict_json import dump_json
from layertap.core.taps import SITES, Tap
from layertap.errors import DamageError, UsageError
from layertap.objects.base import ObjectStore
from layertap.shards.manifest import Manifest
from layertap.shards.manifest_files import require_manifest
from layertap.shards.statistics import TapStatistics, merge_all
from layertap.shards.stored import read_stored
from layertap.shards.tensors import Sink, TensorStream, parse_tensors, write_tensors

FORMAT = "layertap-statistics"
FORMAT_VERSION = "2"
KIND = "statistics"
"""The kind of these files in the manifest."""

_CHANNELS = ("mean", "m2")
_NUMBERS = {
    "count": np.int64,
    "mean_norm": np.float64,
    "mean_square_norm": np.float64,
    "max_norm": np.float64,
    "max_sample_idx": np.int64,
    "max_position": np.int64,
}


def write_statistics(sink: Sink, statistics: Mapping[Tap, TapStatistics], fingerprint: str) -> None:
    """Write a shard's statistics."""
    rows = statistics.values()
    tensors = {
        name: TensorStream.of(np.concatenate([getattr(row, name) for row in rows]).astype(np.float64))
        for name in _CHANNELS
    } | {
        name: TensorStream.of(np.array([getattr(row, name) for row in rows], dtype)) for name, dtype in _NUMBERS.items()
    }
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "fingerprint": fingerprint,
        "taps": dump_json([[*tap, len(row.mean)] for tap, row in statistics.items()]),
    }
    write_tensors(sink, tensors, metadata)


def read_statistics(content: bytes, name: str, widths: Mapping[Tap, int]) -> dict[Tap, TapStatistics]:
    """Read the file `name` of a run with these taps from its content.

    Reads version 1, too, where all taps had one width. Raises DamageError for anything but a file
    that `write_statistics` wrote in either version.
    """
    file = parse_tensors(content, name)
    try:
        if file.metadata["format"] != FORMAT or file.metadata["format_version"] not in ("1", FORMAT_VERSION):
            raise ValueError(f"it is not a file of {FORMAT} 1 or {FORMAT_VERSION}")
        taps = [Tap(told[0], told[1]) for told in json.loads(file.metadata["taps"])]
        bounds = np.cumsum([0, *(widths[tap] for tap in taps)])
        tensors = {key: tensor.reshape(-1) for key, tensor in file.tensors.items()}
        for key, dtype in {**dict.fromkeys(_CHANNELS, np.float64), **_NUMBERS}.items():
            expected = bounds[-1] if key in _CHANNELS else len(taps)
            if tensors[key].dtype != dtype or len(tensors[key]) != expected:
                raise ValueError(f"{key} is not {expected} numbers of {np.dtype(dtype).name}")
    except (ValueError, TypeError, LookupError) as error:
        raise DamageError(f"{name}: cannot be read as statistics: {error}") from error
    return {tap: _row(tensors, number, bounds) for number, tap in enumerate(taps)}


def _row(tensors: Mapping[str, np.ndarray], number: int, bounds: np.ndarray) -> TapStatistics:
    channels: dict[str, Any] = {key: tensors[key][bounds[number] : bounds[number + 1]] for key in _CHANNELS}
    numbers: dict[str, Any] = {key: tensors[key][number].item() for key in _NUMBERS}
    return TapStatistics(**channels, **numbers)


def merge_folders(stores: Sequence[ObjectStore]) -> dict[Tap, TapStatistics]:
    """Merge the statistics of everything that is committed in these output folders.

    Raises what `open_runs` and `merge_runs` raise.
    """
    return merge_runs(open_runs(stores))


def open_runs(stores: Sequence[ObjectStore]) -> list[tuple[ObjectStore, Manifest]]:
    """Open the runs in these output folders.

    Raises UsageError where a folder holds no run, or the runs are of different models.
    """
    manifests = [require_manifest(store) for store in stores]
    _require_one_model(stores, manifests)
    return list(zip(stores, manifests, strict=True))


def merge_runs(runs: Sequence[tuple[ObjectStore, Manifest]]) -> dict[Tap, TapStatistics]:
    """Merge the statistics of everything that these manifests list, by tap in order of site, layer.

    Raises DamageError where a file is not what its manifest says.
    """
    parts: defaultdict[Tap, list[TapStatistics]] = defaultdict(list)
    widths: dict[Tap, int] = {}
    for store, manifest in runs:
        widths |= manifest.taps
        for statistics in _committed(store, manifest):
            for tap, row in statistics.items():
                parts[tap].append(row)
    in_order = sorted(parts, key=lambda tap: (SITES.index(tap.site), tap.layer))
    return {tap: merge_all(parts[tap], widths[tap]) for tap in in_order}


def _require_one_model(stores: Sequence[ObjectStore], manifests: Sequence[Manifest]) -> None:
    for store, manifest in zip(stores, manifests, strict=True):
        if manifest.identity.get("model") != manifests[0].identity.get("model"):
            raise UsageError(
                f"{store.url} holds activations of another model than {stores[0].url}, or of the same one in another"
                " precision; their statistics cannot be merged"
            )


def _committed(store: ObjectStore, manifest: Manifest) -> Iterator[dict[Tap, TapStatistics]]:
    for shard in manifest.shards:
        for file in shard.files:
            if file.kind == KIND:
                yield read_statistics(read_stored(store, file), f"{store.url}/{file.path}", manifest.taps)
