"""Reading and comparing output folders in tests, with nothing of Layertap but the file names."""

import gzip
import pickle
from pathlib import Path
from typing import Any

from content import Content
from safetensors.numpy import load_file


def read(path: Path) -> dict[int, list[dict[str, Any]]]:
    """A shard as plain gzip and pickle read it."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        return pickle.load(file)


def samples(folder: Path, layer: int) -> dict[int, dict[str, Any]]:
    """Every sample of an output folder at one layer, by its number; fails where one stands twice."""
    found: dict[int, dict[str, Any]] = {}
    for path in sorted(folder.glob("shard_*")):
        for entry in read(path)[layer]:
            assert entry["sample_idx"] not in found
            found[entry["sample_idx"]] = entry
    return found


def tensor_samples(folder: Path) -> dict[int, dict[str, Any]]:
    """Every sample in a folder of safetensors, by its number, with its part of each tensor that has tokens."""
    found: dict[int, dict[str, Any]] = {}
    for path in sorted(folder.glob("shard_*")):
        tensors = load_file(path)
        offsets = tensors["sample_offsets"]
        for index, begin, end in zip(tensors["sample_idx"].tolist(), offsets[:-1], offsets[1:], strict=True):
            assert index not in found
            found[index] = {name: tensors[name][begin:end] for name in ("activations", "token_ids", "flags")}
    return found


def contents(folder: Path) -> dict[str, Content]:
    """Every file of an output folder, byte for byte; the lock file and the metrics are not output."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in (".lock", "metrics.jsonl"))
    return {path.relative_to(folder).as_posix(): Content(path.read_bytes()) for path in files}
