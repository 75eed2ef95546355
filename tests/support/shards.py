"""Reading and comparing output folders in tests, using nothing of Layertap but the file names."""

import gzip
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from content import Content
from safetensors.numpy import load_file


def read(path: Path) -> dict[int, list[dict[str, Any]]]:
    """Read a shard with plain gzip and pickle."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        return pickle.load(file)


def samples(folder: Path, layer: int) -> dict[int, dict[str, Any]]:
    """Every sample of an output folder at one layer, by its number; fails if one is there twice."""
    found: dict[int, dict[str, Any]] = {}
    for path in sorted(folder.glob("shard_*")):
        for entry in read(path)[layer]:
            assert entry["sample_idx"] not in found
            found[entry["sample_idx"]] = entry
    return found


def tensor_samples(folder: Path, tap: str) -> dict[int, dict[str, Any]]:
    """Every sample of an output folder of safetensors at one tap (`residual.12`), by its number.

    Each has its activations and its part of each column.
    """
    found: dict[int, dict[str, Any]] = {}
    for path in sorted(folder.glob("shard_*")):
        tensors = load_file(path)
        offsets = tensors["sample_offsets"]
        for index, begin, end in zip(tensors["sample_idx"].tolist(), offsets[:-1], offsets[1:], strict=True):
            assert index not in found
            found[index] = {name: tensors[name][begin:end] for name in ("token_ids", "positions", "flags")}
            found[index]["activations"] = tensors[tap][begin:end]
    return found


def described(files: Mapping[str, bytes]) -> dict[str, Any]:
    """Return the manifest among these files: its head, with the shards that count as a list.

    Without a manifest the list is empty.
    """
    if "metadata.json" not in files:
        return {"shards": []}
    head = json.loads(files["metadata.json"])
    parts = [files[name] for name in sorted(files) if name.startswith("manifest/")]
    lines = [line for part in parts for line in part.splitlines()]
    return head | {"shards": [json.loads(line) for line in lines[: head["totals"]["shards"]]]}


def manifest(folder: Path) -> dict[str, Any]:
    """Return the same for an output folder."""
    paths = [folder / "metadata.json", *folder.glob("manifest/*.jsonl")]
    return described({path.relative_to(folder).as_posix(): path.read_bytes() for path in paths if path.exists()})


def contents(folder: Path) -> dict[str, Content]:
    """Every file of an output folder, byte for byte; the lock file and the metrics are not
    output."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in (".lock", "metrics.jsonl"))
    return {path.relative_to(folder).as_posix(): Content(path.read_bytes()) for path in files}
