"""The manifest: what an output folder holds. It is true after every commit.

`metadata.json` is the head. It describes the run, says where to continue, and says how many shards
count. It is replaced atomically once the files of a shard are complete. So every shard that counts
exists, and a file that is not listed does not count.

The shards are listed in parts: `manifest/part_0001.jsonl` and so on. A part has one line for each
shard and at most `SHARDS_A_PART` lines, and lines are only added. A commit writes the last part and
then the head, so the thousandth shard costs no more than the first. The head has the checksum of
all lines that count. A line after those belongs to a commit that did not happen, or to one that the
reader has not seen yet.

The manifest holds no time and no host name. So an interrupted and resumed run has the same
manifest, byte for byte, as a run without interruption.

Manifests of format version 1 listed the shards in `metadata.json`. Layertap still reads them.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
"""In `progress`: the token limit that ended the run, where that came before the dataset's end."""
UNKEPT = "unkept_samples"
"""In `progress`: samples without any of the tokens that the run keeps."""

Json = Mapping[str, Any]


@dataclass(frozen=True)
class StoredFile:
    """One file of a shard: its path in the output folder, its kind, its size, its CRC-32C (hex)."""

    path: str
    kind: str
    """"activations" or "statistics"."""
    site: str | None
    """None: all sites of the run."""
    bytes: int
    crc32c: str
    layer: int | None = None
    """None: all layers of the run. It is always None since format version 2."""


@dataclass(frozen=True)
class ShardEntry:
    """One committed shard. `sample_idx` holds ascending, inclusive ranges."""

    index: int
    samples: int
    tokens: int
    sample_idx: tuple[tuple[int, int], ...]
    files: tuple[StoredFile, ...]
    nonfinite: int = 0
    """How many activations (of one token at one tap) have a NaN or an infinity that the run
    kept."""

    @cached_property
    def line(self) -> bytes:
        """The shard's line in a part of the manifest."""
        raw = dataclasses.asdict(self)
        for file in raw["files"]:
            del file["layer"]
        if not self.nonfinite:
            del raw["nonfinite"]
        return dump_json(raw).encode() + b"\n"


@dataclass(frozen=True)
class Manifest:
    """Everything in the head and the parts."""

    fingerprint: str
    identity: Json
    """Everything that decides the output's bytes. The fingerprint is its hash."""
    config: Json
    """The resolved settings of the run."""
    worker_id: int
    model_path: str
    """The model path at the first start. The tokenizer may be found there."""
    model_type: str
    special_ids: tuple[int, ...]
    """The tokenizer's special tokens, ascending. The flags mark them."""
    format: str
    """"pickle" or "safetensors"."""
    taps: Mapping[Tap, int]
    """The taps that are stored, site by site and layer by layer, with the width of each."""
    storage_dtype: str
    columns: Mapping[str, str] = field(default_factory=lambda: {name: dtype.name for name, dtype in COLUMNS.items()})
    """The dtype of each column that is stored."""
    certificate: Json = field(default_factory=dict)
    """How far the activations are from float32 (pipeline/certificate.py). Empty unless you asked
    for it."""
    shards: tuple[ShardEntry, ...] = ()
    progress: Json = field(default_factory=dict)
    """Where the run continues, what it skipped, and the limit that ended it
    (pipeline/windows.py)."""
    complete: bool = False
    format_version: int = FORMAT_VERSION

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that are stored, ascending."""
        return tuple(sorted({tap.layer for tap in self.taps}))

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites that are stored, in the order in which you asked for them."""
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
        """How many samples the committed shards hold."""
        return sum(shard.samples for shard in self.shards)

    @property
    def tokens(self) -> int:
        """How many tokens the committed shards hold."""
        return sum(shard.tokens for shard in self.shards)

    @property
    def stopped_at(self) -> int | None:
        """The token limit that ended the run, if the limit came before the dataset's end."""
        return self.progress.get(STOPPED_AT) if self.complete else None

    @property
    def keep_tokens(self) -> tuple[str, ...]:
        """Which tokens the run stores (`core.selection`)."""
        return tuple(self.identity.get("storage", {}).get("keep_tokens", (ALL,)))

    @property
    def unkept_samples(self) -> Iterator[int]:
        """Samples that were computed but have no token that the run keeps."""
        ranges = self.progress.get(UNKEPT, {}).get("sample_idx", ())
        return (index for first, last in ranges for index in range(first, last + 1))

    @property
    def nonfinite(self) -> int:
        """How many activations in committed shards have a NaN or an infinity."""
        return sum(shard.nonfinite for shard in self.shards)

    def with_shard(self, shard: ShardEntry | None, progress: Json, *, complete: bool) -> "Manifest":
        """Return the manifest after one more commit."""
        shards = self.shards if shard is None else (*self.shards, shard)
        return dataclasses.replace(self, shards=shards, progress=progress, complete=complete)

    def require_same_run(self, other: "Manifest", place: object, flag: str = "--output_dir") -> None:
        """Raise RunMismatchError, with what differs, unless `other` is the same worker of this run.

        The same worker of the same run writes the same bytes. `place` holds this manifest; `flag`
        names another place.
        """
        differing = differences(self.identity, other.identity)
        if any(self.identity.get(name) != other.identity.get(name) for name in ("layers", "sites")):
            # Only weights that the run needs are compared, so other taps may differ there, too.
            differing = [line for line in differing if not line.startswith("model.weights: ")]
        for name in ("worker_id", "format_version"):
            if getattr(self, name) != getattr(other, name):
                differing.append(f"{name}: {getattr(self, name)} there, {getattr(other, name)} now")
        if differing:
            raise RunMismatchError(
                f"{place} holds another run's output; give another {flag}, or the same settings:\n  "
                + "\n  ".join(differing)
            )


def fingerprint_of(identity: Json) -> str:
    """Return the run fingerprint: SHA-256 (hex) of everything that decides the output's bytes."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def shard_number(path: str) -> int:
    """Return the number of the shard that a file belongs to by its name; 0 if to none."""
    number = PurePosixPath(path).name.removeprefix("shard_").partition(".")[0]
    return int(number) if number.isdecimal() else 0


def index_ranges(indices: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Return ascending, inclusive ranges that cover exactly `indices`."""
    return join_ranges((index, index) for index in indices)


def join_ranges(pairs: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Return inclusive ranges in ascending order, joined where one begins right after another."""
    ranges: list[tuple[int, int]] = []
    for first, last in sorted(pairs):
        if ranges and first == ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], last)
        else:
            ranges.append((first, last))
    return tuple(ranges)


def listed_ranges(ranges: Sequence[tuple[int, int]], most: int | None = None) -> str:
    """Write such ranges in words; at most so many of them, and then how many more there are."""
    shown = [f"{first}" if first == last else f"{first} to {last}" for first, last in ranges[:most]]
    more = [f"and {len(ranges) - len(shown)} more ranges"] if len(ranges) > len(shown) else []
    return ", ".join((*shown, *more)) or "none"


def differences(there: object, now: object, path: str = "") -> list[str]:
    """List what differs between two values from JSON, one line for each difference."""
    if isinstance(there, Mapping) and isinstance(now, Mapping):
        keys = [*there, *(key for key in now if key not in there)]
        return [line for key in keys for line in differences(there.get(key), now.get(key), f"{path}{key}.")]
    return [] if there == now else [f"{path.rstrip('.')}: {there} there, {now} now"]
