"""The files of the manifest: written in the order of a commit, and checked when they are read.

This module checks types and sums. `verify` checks whether the shards match the manifest.
"""

import json
from collections.abc import Iterator, Mapping
from operator import index as exact_int
from pathlib import PurePosixPath
from typing import Any

from layertap.core.strict_json import dump_json
from layertap.core.taps import SITES, Tap
from layertap.errors import DamageError, UsageError
from layertap.objects.base import OWNED, ObjectStore
from layertap.objects.content import MemoryContent
from layertap.objects.files import crc32c_of
from layertap.shards.manifest import FILE_NAME, SHARDS_A_PART, Json, Manifest, ShardEntry, StoredFile

_REMEDY = "restore it from a copy, or extract into another --output_dir"


def part_name(number: int) -> str:
    """Return the name of a part, counted from 1."""
    return f"manifest/part_{number:04d}.jsonl"


def part_bytes(manifest: Manifest, number: int) -> bytes:
    """Return the bytes of a part."""
    begin = (number - 1) * SHARDS_A_PART
    return b"".join(shard.line for shard in manifest.shards[begin : begin + SHARDS_A_PART])


def count_parts(shards: int) -> int:
    """Return how many parts are needed to list so many shards."""
    return -(-shards // SHARDS_A_PART)


def head_bytes(manifest: Manifest) -> bytes:
    """Return the bytes of `metadata.json`."""
    # Escaped to ASCII: a path or a task id may hold half a surrogate pair, which UTF-8 cannot hold.
    return (dump_json(_head(manifest), indent=2) + "\n").encode()


def commit_manifest(store: ObjectStore, manifest: Manifest) -> None:
    """Write the last part, then the head. Earlier commits wrote the parts before it."""
    if manifest.shards:
        last = count_parts(len(manifest.shards))
        store.put(part_name(last), MemoryContent([part_bytes(manifest, last)]), replaces=OWNED)
    store.put(FILE_NAME, MemoryContent([head_bytes(manifest)]), replaces=OWNED)


def write_manifest(store: ObjectStore, manifest: Manifest) -> None:
    """Write all parts, then the head, whether or not they exist already."""
    for number in range(1, count_parts(len(manifest.shards))):
        store.put(part_name(number), MemoryContent([part_bytes(manifest, number)]), replaces=OWNED)
    commit_manifest(store, manifest)


def load_manifest(store: ObjectStore) -> Manifest | None:
    """Read the manifest of an output folder, or return None where it has none.

    Raises DamageError where the manifest is damaged.
    """
    head = store.read(FILE_NAME)
    return None if head is None else parse_manifest(store, head.data)


def require_manifest(store: ObjectStore) -> Manifest:
    """Read the manifest of an output folder. Raises UsageError where there is none."""
    return parse_manifest(store, read_head(store))


def read_head(store: ObjectStore) -> bytes:
    """Read the bytes of the manifest's head. Raises UsageError where there is none."""
    head = store.read(FILE_NAME)
    if head is None:
        raise UsageError(f"{store.url}/{FILE_NAME}: no such file; {store.url} is not the output folder of a run")
    return head.data


def parse_manifest(store: ObjectStore, head: bytes) -> Manifest:
    """Read the manifest that has this head, and whose parts are in `store`.

    Raises DamageError where it is damaged.
    """
    name = f"{store.url}/{FILE_NAME}"
    try:
        raw = json.loads(head)
    except (ValueError, RecursionError) as error:
        raise DamageError(f"{name}: is not JSON: {error}; {_REMEDY}") from error
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if type(version) is not int or version not in (1, 2):
        raise DamageError(f"{name}: is not a Layertap manifest of format version 1 or 2; {_REMEDY}")
    try:
        if version == 2:
            return _parse(raw, _listed_shards(store, raw))
        taps = [{"site": site, "width": raw["hidden_size"], "layers": raw["layers"]} for site in raw["sites"]]
        return _parse(raw | {"taps": taps, "columns": _columns_of_version_1(raw)}, raw["shards"])
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise DamageError(f"{name}: a field is missing or damaged: {error!r}; {_REMEDY}") from error


def _head(manifest: Manifest) -> dict[str, Any]:
    raw = {name: getattr(manifest, name) for name in _FIELDS}
    layers: dict[tuple[str, int], list[int]] = {}
    for tap, width in manifest.taps.items():
        layers.setdefault((tap.site, width), []).append(tap.layer)
    return {
        "format_version": manifest.format_version,
        **raw,
        "taps": [{"site": site, "width": width, "layers": own} for (site, width), own in layers.items()],
        "totals": _totals(manifest),
        "shards_crc32c": crc32c_of(shard.line for shard in manifest.shards),
    }


def _totals(manifest: Manifest) -> dict[str, int]:
    totals = {"shards": len(manifest.shards), "samples": manifest.samples, "tokens": manifest.tokens}
    return totals | ({"nonfinite": manifest.nonfinite} if manifest.nonfinite else {})


def _listed_shards(store: ObjectStore, head: Json) -> list[Any]:
    """Read the shards that count from the parts."""
    count = exact_int(head["totals"]["shards"])
    lines: list[bytes] = []
    for number in range(1, count_parts(count) + 1):
        part = store.read(part_name(number))
        if part is None:
            raise DamageError(f"{store.url}/{part_name(number)}: missing; {_REMEDY}")
        lines += part.data.splitlines(keepends=True)[: count - len(lines)]
    if crc32c_of(lines) != head["shards_crc32c"]:
        raise DamageError(f"{store.url}/manifest: its parts do not list what {FILE_NAME} counts; {_REMEDY}")
    return [json.loads(line) for line in lines]


# The fields of the head that `Manifest` has too, with their types in JSON.
_FIELDS: Mapping[str, type] = {
    "fingerprint": str,
    "identity": dict,
    "config": dict,
    "worker_id": int,
    "model_path": str,
    "model_type": str,
    "special_ids": list,
    "format": str,
    "storage_dtype": str,
    "columns": dict,
    "certificate": dict,
    "progress": dict,
    "complete": bool,
}


def _parse(raw: dict[str, Any], shards: list[Any]) -> Manifest:
    values = _typed(raw, _FIELDS)
    values["special_ids"] = tuple(map(exact_int, values["special_ids"]))
    taps = dict(_taps(raw["taps"]))
    entries = tuple(map(_parse_shard, shards))
    manifest = Manifest(**values, taps=taps, shards=entries, format_version=raw["format_version"])
    if raw["totals"] != _totals(manifest):
        raise ValueError(f"totals are {raw['totals']}, but the shards add up to {_totals(manifest)}")
    if not taps or manifest.format not in ("pickle", "safetensors"):
        raise ValueError(f"format is {manifest.format!r}, with {len(taps)} taps")
    if not {"token_ids", "flags"} <= set(manifest.columns):
        raise ValueError(f"columns are {manifest.columns}, without token_ids or flags")
    return manifest


def _taps(raw: Any) -> Iterator[tuple[Tap, int]]:  # noqa: ANN401 - of JSON
    for group in raw:
        if group["site"] not in SITES:
            raise ValueError(f"{group['site']!r} is not a site that this version knows")
        for layer in group["layers"]:
            yield Tap(exact_int(layer), group["site"]), exact_int(group["width"])


def _parse_shard(raw: Json) -> ShardEntry:
    values = _typed(raw, {"index": int, "samples": int, "tokens": int, "sample_idx": list, "files": list})
    values["sample_idx"] = tuple((exact_int(first), exact_int(last)) for first, last in values["sample_idx"])
    values["files"] = tuple(map(_parse_file, values["files"]))
    return ShardEntry(**values, nonfinite=exact_int(raw.get("nonfinite", 0)))


def _parse_file(raw: Json) -> StoredFile:
    values = _typed(raw, {"path": str, "kind": str, "bytes": int, "crc32c": str})
    path = PurePosixPath(values["path"])
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"path {values['path']!r} leads out of the folder")
    return StoredFile(**values, site=raw["site"], layer=raw.get("layer"))


def _typed(raw: Json, types: Mapping[str, type]) -> dict[str, Any]:
    """Return those fields of `raw`. Raises KeyError or TypeError for a missing or wrong one."""
    values = {name: raw[name] for name in types}
    for name, value in values.items():
        if type(value) is not types[name]:
            raise TypeError(f"{name} is {value!r}")
    return values


def _columns_of_version_1(raw: Json) -> dict[str, str]:
    columns = {"token_ids": "int32", "positions": "int32", "flags": "uint8"}
    return columns if raw["format"] == "safetensors" else {name: columns[name] for name in ("token_ids", "flags")}
