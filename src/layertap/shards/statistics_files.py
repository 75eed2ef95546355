"""`statistics/shard_0001.safetensors`: the statistics of a shard at all its taps, and their sum over folders.

One small file a shard, committed with it: what is merged is what the manifest names, so an interrupted run counts
nothing twice, and workers' folders are merged without reading an activation.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np

from layertap.core.taps import SITES, Site, Tap
from layertap.errors import DamageError, UsageError
from layertap.objects.base import ObjectStore
from layertap.objects.files import Checksummed
from layertap.shards.manifest import Manifest
from layertap.shards.statistics import TapStatistics, merge_all
from layertap.shards.stored import read_stored, require_manifest
from layertap.shards.tensors import TensorStream, parse_tensors, write_tensors

FORMAT = "layertap-statistics"
FORMAT_VERSION = "1"
KIND = "statistics"
"""What the manifest calls these files."""

_FIELDS = {
    "mean": np.float64,
    "m2": np.float64,
    "count": np.int64,
    "mean_norm": np.float64,
    "mean_square_norm": np.float64,
    "max_norm": np.float64,
    "max_sample_idx": np.int64,
    "max_position": np.int64,
}


def write_statistics(sink: Checksummed, statistics: Mapping[Tap, TapStatistics], fingerprint: str) -> None:
    """Write a shard's statistics, one row a tap."""
    tensors = {
        name: TensorStream.of(np.array([getattr(of_tap, name) for of_tap in statistics.values()], dtype))
        for name, dtype in _FIELDS.items()
    }
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "fingerprint": fingerprint,
        "taps": json.dumps([list(tap) for tap in statistics]),
    }
    write_tensors(sink, tensors, metadata)


def read_statistics(content: bytes, name: str, hidden: int) -> dict[Tap, TapStatistics]:
    """Read the file `name` back from its content; raises DamageError where it is not as `write_statistics` writes."""
    file = parse_tensors(content, name)
    try:
        if (file.metadata["format"], file.metadata["format_version"]) != (FORMAT, FORMAT_VERSION):
            raise ValueError(f"it is not a file of {FORMAT} {FORMAT_VERSION}")
        taps = [Tap(layer, _site(site)) for layer, site in json.loads(file.metadata["taps"])]
        for field, dtype in _FIELDS.items():
            shape = (len(taps), hidden) if field in ("mean", "m2") else (len(taps),)
            if file.tensors[field].dtype != dtype or file.tensors[field].shape != shape:
                raise ValueError(f"{field} is not {np.dtype(dtype).name} {shape}")
    except (ValueError, TypeError, KeyError) as error:
        raise DamageError(f"{name}: cannot be read as statistics: {error}") from error
    return {tap: TapStatistics(**_row(file.tensors, number)) for number, tap in enumerate(taps)}


def _row(tensors: Mapping[str, np.ndarray], number: int) -> dict[str, Any]:
    rows = {field: tensors[field][number] for field in _FIELDS}
    return {field: row if row.ndim else row.item() for field, row in rows.items()}


def _site(name: Any) -> Site:  # noqa: ANN401 - of JSON
    if name not in SITES:
        raise ValueError(f"{name!r} is no site")
    return cast(Site, name)


def merge_folders(folders: Sequence[ObjectStore]) -> dict[Tap, TapStatistics]:
    """The statistics of everything that is committed in these output folders, by tap, sites and layers in order.

    Raises UsageError where a folder holds no run, or the runs are of different models; DamageError where a file is
    not what the manifest says.
    """
    manifests = [require_manifest(folder) for folder in folders]
    _require_one_model(folders, manifests)
    parts: defaultdict[Tap, list[TapStatistics]] = defaultdict(list)
    for folder, manifest in zip(folders, manifests, strict=True):
        for statistics in _committed(folder, manifest):
            for tap, of_tap in statistics.items():
                parts[tap].append(of_tap)
    in_order = sorted(parts, key=lambda tap: (SITES.index(tap.site), tap.layer))
    return {tap: merge_all(parts[tap], manifests[0].hidden_size) for tap in in_order}


def _require_one_model(folders: Sequence[ObjectStore], manifests: Sequence[Manifest]) -> None:
    for folder, manifest in zip(folders, manifests, strict=True):
        if manifest.identity.get("model") != manifests[0].identity.get("model"):
            raise UsageError(
                f"{folder.url} holds activations of another model than {folders[0].url}, or of the same one in another"
                " precision; their statistics cannot be merged"
            )


def _committed(folder: ObjectStore, manifest: Manifest) -> Iterator[dict[Tap, TapStatistics]]:
    for shard in manifest.shards:
        for file in shard.files:
            if file.kind == KIND:
                yield read_statistics(read_stored(folder, file), f"{folder.url}/{file.path}", manifest.hidden_size)
