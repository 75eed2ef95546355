"""The manifest: what an output folder holds, true after every commit.

`metadata.json` is the head: the run, where it goes on, and how many shards count. It is replaced
atomically after the files of a shard are whole, so every shard that counts exists, and a file that
is not listed does not count. The shards themselves are listed in parts, `manifest/part_0001.jsonl`
and so on: one line a shard, `SHARDS_A_PART` lines a part, and lines are only ever added. A commit
writes the last part and then the head, so it costs the same for the first shard and the thousandth.
The head has the checksum of all lines that count. A line behind those is of a commit that did not
happen, or of one that a reader does not know of yet.

The manifest holds no time and no host: that of an interrupted and resumed run equals, byte for
byte, that of one which ran through.

Manifests of format version 1 listed the shards in `metadata.json`. They are still read.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from layertap.core.columns import COLUMNS
from layertap.core.selection import ALL
from layertap.core.strict_json import dump_json
from layertap.core.taps import Site, Tap
from layertap.errors import RunMismatchError
from layertap.shards.quantised import read_as

FILE_NAME = "metadata.json"
FORMAT_VERSION = 2
SHARDS_A_PART = 100
STOPPED_AT = "max_tokens_total"
"""In `progress` of a run that is complete because so many tokens were asked for."""
UNKEPT = "unkept_samples"
"""In `progress`: samples that have none of the tokens that the run keeps."""

Json = Mapping[str, Any]


@dataclass(frozen=True)
class StoredFile:
    """One file of a shard: its path below the output folder, what it holds, its size and CRC-32C
    (hex).
    """

    path: str
    kind: str
    """"activations" or "statistics"."""
    site: str | None
    """None: all sites of the run."""
    bytes: int
    crc32c: str
    layer: int | None = None
    """None: all layers of the run, as always since format version 2."""


@dataclass(frozen=True)
class ShardEntry:
    """One committed shard; `sample_idx` as ascending, inclusive ranges."""

    index: int
    samples: int
    tokens: int
    sample_idx: tuple[tuple[int, int], ...]
    files: tuple[StoredFile, ...]
    nonfinite: int = 0
    """Activations, each of a token at a tap, with a NaN or an infinity, which the run was to
    keep."""

    @cached_property
    def line(self) -> bytes:
        """As it is listed in a part of the manifest."""
        raw = dataclasses.asdict(self)
        for file in raw["files"]:
            del file["layer"]
        if not self.nonfinite:
            del raw["nonfinite"]
        return dump_json(raw).encode() + b"\n"


@dataclass(frozen=True)
class Manifest:
    """Everything that head and parts say."""

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
    taps: Mapping[Tap, int]
    """What is stored, site by site and layer by layer, with the width of each."""
    storage_dtype: str
    columns: Mapping[str, str] = field(default_factory=lambda: {name: dtype.name for name, dtype in COLUMNS.items()})
    """The dtype of each column that is stored."""
    certificate: Json = field(default_factory=dict)
    """How far the activations are from float32 (pipeline/certificate.py); empty unless it was asked
    for."""
    shards: tuple[ShardEntry, ...] = ()
    progress: Json = field(default_factory=dict)
    """Where the run goes on, what it skipped, whether it is complete (pipeline/windows.py)."""
    complete: bool = False
    format_version: int = FORMAT_VERSION

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that are stored, ascending."""
        return tuple(sorted({tap.layer for tap in self.taps}))

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites that are stored, in the order in which they were asked for."""
        return tuple(dict.fromkeys(tap.site for tap in self.taps))

    @property
    def read_as(self) -> str:
        """The dtype that activations are read as: float32 where `storage_dtype` is quantised."""
        return read_as(self.storage_dtype)

    @property
    def quantised(self) -> bool:
        """Whether activations are stored as codes with scales."""
        return self.read_as != self.storage_dtype

    @property
    def samples(self) -> int:
        """Samples in committed shards."""
        return sum(shard.samples for shard in self.shards)

    @property
    def tokens(self) -> int:
        """Tokens in committed shards."""
        return sum(shard.tokens for shard in self.shards)

    @property
    def stopped_at(self) -> int | None:
        """The number of tokens at which the run was to stop, if that came before the dataset's
        end.
        """
        return self.progress.get(STOPPED_AT) if self.complete else None

    @property
    def keep_tokens(self) -> tuple[str, ...]:
        """Which tokens the run stores (`core.selection`)."""
        return tuple(self.identity.get("storage", {}).get("keep_tokens", (ALL,)))

    @property
    def unkept_samples(self) -> Iterator[int]:
        """Samples that were computed, and have no token that is kept."""
        ranges = self.progress.get(UNKEPT, {}).get("sample_idx", ())
        return (index for first, last in ranges for index in range(first, last + 1))

    @property
    def nonfinite(self) -> int:
        """Activations with a NaN or an infinity in committed shards."""
        return sum(shard.nonfinite for shard in self.shards)

    def with_shard(self, shard: ShardEntry | None, progress: Json, *, complete: bool) -> "Manifest":
        """The manifest after one more commit."""
        shards = self.shards if shard is None else (*self.shards, shard)
        return dataclasses.replace(self, shards=shards, progress=progress, complete=complete)

    def require_same_run(self, other: "Manifest", place: object, flag: str = "--output_dir") -> None:
        """Raise RunMismatchError, saying what differs, unless `other` would write the same bytes as
        the same worker.

        `place` holds this manifest; `flag` is what names another place.
        """
        differing = differences(self.identity, other.identity)
        for name in ("worker_id", "format_version"):
            if getattr(self, name) != getattr(other, name):
                differing.append(f"{name}: {getattr(self, name)} there, {getattr(other, name)} now")
        if differing:
            raise RunMismatchError(
                f"{place} holds another run's output; give another {flag}, or the same settings:\n  "
                + "\n  ".join(differing)
            )


def fingerprint_of(identity: Json) -> str:
    """The run fingerprint: SHA-256 (hex) over everything that decides the output's bytes."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def shard_number(path: str) -> int:
    """The number of the shard that a file is of, by its name; 0 where it is of none."""
    number = PurePosixPath(path).name.removeprefix("shard_").partition(".")[0]
    return int(number) if number.isdecimal() else 0


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
    return ", ".join(f"{first} to {last}" for first, last in ranges) or "none"


def differences(there: object, now: object, path: str = "") -> list[str]:
    """What differs between two values from JSON, a line each."""
    if isinstance(there, Mapping) and isinstance(now, Mapping):
        keys = [*there, *(key for key in now if key not in there)]
        return [line for key in keys for line in differences(there.get(key), now.get(key), f"{path}{key}.")]
    return [] if there == now else [f"{path.rstrip('.')}: {there} there, {now} now"]
