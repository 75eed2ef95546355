"""The manifest, `metadata.json`: what an output folder holds, true after every commit.

It is written after the shard's files are whole on disk, and replaced atomically, so every shard that it names exists,
and a file that it does not name does not count. It carries the position from which the run goes on: with the shards,
it is all that a restart needs.

There is no time and no host in it: the manifest of an interrupted and resumed run equals, byte for byte, that of one
which ran through.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from operator import index as exact_int
from pathlib import Path, PurePosixPath
from types import UnionType
from typing import Any, get_args, get_origin

from layertap.errors import DamageError, RunMismatchError, StorageError
from layertap.objects.files import atomic_write

FILE_NAME = "metadata.json"
FORMAT_VERSION = 1

_REMEDY = "restore it from a copy, or extract into another --output_dir"
_IN_JSON: Mapping[Any, type] = {tuple: list, Mapping: dict}

Json = Mapping[str, Any]


@dataclass(frozen=True)
class StoredFile:
    """One file of a shard: its path below the output folder, what it holds, its size in bytes and its CRC-32C (hex)."""

    path: str
    site: str | None
    """None: all sites of the run."""
    layer: int | None
    """None: all layers of the run."""
    bytes: int
    crc32c: str
    kind: str = "activations"
    """Or "statistics"."""


@dataclass(frozen=True)
class ShardEntry:
    """One committed shard; `sample_idx` as ascending, inclusive ranges."""

    index: int
    samples: int
    tokens: int
    sample_idx: tuple[tuple[int, int], ...]
    files: tuple[StoredFile, ...]


@dataclass(frozen=True)
class Manifest:
    """Everything `metadata.json` says."""

    fingerprint: str
    identity: Json
    """What the fingerprint is the hash of: everything that decides the output's bytes."""
    config: Json
    """The resolved settings of the run."""
    worker_id: int
    model_path: str
    """As the first start had it; where the tokenizer may be found."""
    model_type: str
    special_ids: tuple[int, ...]
    """The tokenizer's special tokens, which the flags mark; ascending."""
    format: str
    """"pickle" or "safetensors"."""
    layers: tuple[int, ...]
    sites: tuple[str, ...]
    hidden_size: int
    storage_dtype: str
    certificate: Json = field(default_factory=dict)
    """How far the activations are from float32 (extract/certificate.py); empty unless it was asked for."""
    shards: tuple[ShardEntry, ...] = ()
    progress: Json = field(default_factory=dict)
    """Where the run goes on, what it skipped, whether it is complete (extract/windows.py)."""
    complete: bool = False

    @property
    def samples(self) -> int:
        """Samples in committed shards."""
        return sum(shard.samples for shard in self.shards)

    @property
    def tokens(self) -> int:
        """Tokens in committed shards."""
        return sum(shard.tokens for shard in self.shards)

    def with_shard(self, shard: ShardEntry | None, progress: Json, *, complete: bool) -> "Manifest":
        """The manifest after one more commit."""
        shards = self.shards if shard is None else (*self.shards, shard)
        return dataclasses.replace(self, shards=shards, progress=progress, complete=complete)

    def require_same_run(self, other: "Manifest", place: Path | str, flag: str = "--output_dir") -> None:
        """Raise RunMismatchError, saying what differs, unless `other` would write the same bytes as the same worker.

        `place` holds this manifest; `flag` is what names another place.
        """
        differing = differences(self.identity, other.identity)
        if self.worker_id != other.worker_id:
            differing.append(f"worker_id: {self.worker_id} there, {other.worker_id} now")
        if differing:
            raise RunMismatchError(
                f"{place} holds another run's output; give another {flag}, or the same settings:\n  "
                + "\n  ".join(differing)
            )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace `folder/metadata.json` atomically."""
    with atomic_write(folder / FILE_NAME) as file:
        file.write(manifest_bytes(manifest))


def manifest_bytes(manifest: Manifest) -> bytes:
    """What `metadata.json` holds; one line a shard, so that a person can read it."""
    header = dataclasses.asdict(manifest)
    shards = header.pop("shards")
    # Escaped to ASCII: a path or a task id may hold half a surrogate pair, which UTF-8 cannot.
    text = json.dumps({"format_version": FORMAT_VERSION, **header, "totals": _totals(manifest)}, indent=2)
    lines = ",\n".join("    " + json.dumps(shard) for shard in shards)
    listed = f"[\n{lines}\n  ]" if shards else "[]"
    return f'{text[:-2]},\n  "shards": {listed}\n}}\n'.encode()


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of `folder`, or None where it holds none; raises DamageError where it is not one.

    What it says is of the right types and adds up; whether the shards agree is for `verify` to find out.
    """
    path = folder / FILE_NAME
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror}") from error
    return parse_manifest(content, str(path))


def parse_manifest(content: bytes, name: str) -> Manifest:
    """The manifest in the file `name` with this content; raises DamageError where it is not one."""
    try:
        raw = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DamageError(f"{name}: is not JSON: {error}; {_REMEDY}") from error
    if not isinstance(raw, dict) or raw.get("format_version") != FORMAT_VERSION:
        raise DamageError(f"{name}: is not a Layertap manifest of format version {FORMAT_VERSION}; {_REMEDY}")
    try:
        return _parse(raw)
    except (KeyError, TypeError, ValueError) as error:
        raise DamageError(f"{name}: lacks or garbles a field: {error!r}; {_REMEDY}") from error


def fingerprint_of(identity: Json) -> str:
    """The run fingerprint: SHA-256 (hex) over everything that decides the output's bytes."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def index_ranges(indices: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Ascending, inclusive ranges that cover exactly `indices`."""
    ranges: list[tuple[int, int]] = []
    for index in sorted(indices):
        if ranges and index == ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], index)
        else:
            ranges.append((index, index))
    return tuple(ranges)


def listed_ranges(ranges: Iterable[tuple[int, int]]) -> str:
    """Such ranges in words."""
    return ", ".join(f"{first} to {last}" for first, last in ranges)


def _totals(manifest: Manifest) -> dict[str, int]:
    return {"shards": len(manifest.shards), "samples": manifest.samples, "tokens": manifest.tokens}


def _parse(raw: Json) -> Manifest:
    values = _declared(Manifest, raw)
    values["layers"] = tuple(map(exact_int, raw["layers"]))
    values["special_ids"] = tuple(map(exact_int, raw["special_ids"]))
    values["sites"] = tuple(raw["sites"])
    values["shards"] = tuple(map(_parse_shard, raw["shards"]))
    manifest = Manifest(**values)
    if raw["totals"] != _totals(manifest):
        raise ValueError(f"totals are {raw['totals']}, but the shards add up to {_totals(manifest)}")
    return manifest


def _parse_shard(raw: Json) -> ShardEntry:
    values = _declared(ShardEntry, raw)
    values["sample_idx"] = tuple((exact_int(first), exact_int(last)) for first, last in raw["sample_idx"])
    values["files"] = tuple(map(_parse_file, raw["files"]))
    return ShardEntry(**values)


def _parse_file(raw: Json) -> StoredFile:
    file = StoredFile(**_declared(StoredFile, raw))
    path = PurePosixPath(file.path)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"path {file.path!r} leads out of the folder")
    return file


def _declared(kind: type[Manifest | ShardEntry | StoredFile], raw: Json) -> dict[str, Any]:
    """The fields of `kind` in `raw`; raises KeyError or TypeError where one is missing or of another type."""
    values: dict[str, Any] = {}
    for declared in dataclasses.fields(kind):
        value = values[declared.name] = raw[declared.name]
        if type(value) not in _types_in_json(declared.type):
            raise TypeError(f"{declared.name} is {value!r}")
    return values


def _types_in_json(declared: Any) -> tuple[type, ...]:  # noqa: ANN401 - whatever stands behind a field's colon
    """The types that JSON may have for a field of type `declared`."""
    kinds = get_args(declared) if isinstance(declared, UnionType) else (get_origin(declared) or declared,)
    return tuple(_IN_JSON.get(kind, kind) for kind in kinds)


def differences(there: object, now: object, path: str = "") -> list[str]:
    """What differs between two values from JSON, a line each."""
    if isinstance(there, Mapping) and isinstance(now, Mapping):
        keys = [*there, *(key for key in now if key not in there)]
        return [line for key in keys for line in differences(there.get(key), now.get(key), f"{path}{key}.")]
    return [] if there == now else [f"{path.rstrip('.')}: {there} there, {now} now"]
