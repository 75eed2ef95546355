"""A dataset in shards, in a folder or bucket that all workers reach.

    dataset.json                the shards: which records each holds, and how many samples stand before it
    tasks/shard_00003.jsonl     the records of one
    run.json                    what all workers extract: settings that decide the bytes (worker.py)
    claims/shard_00003.json     who has it, or why it failed (leases.py)
    done/shard_00003.json       who finished it, and which output files are its activations

A shard is a run of consecutive records. `dataset.json` says how many documents and test inputs stand before it, which
with `--predictions_per_task` gives the number of its first sample: so `sample_idx` is the same as in a run over the
whole dataset, whoever extracts the shard.

The records are spooled to a local temporary file first, because how long a shard is follows from how many there are:
disk for one copy of the dataset, memory for one shard. `dataset.json` is written last and only once, so a dataset is
there with all its shards or not at all; the same command again finds its own shards and writes what is missing.
"""

import json
import tempfile
from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import IO, Any

import google_crc32c

from layertap.config.fleet import CreateShardsConfig
from layertap.core.records import Document
from layertap.errors import DamageError, RunMismatchError, UsageError
from layertap.fleet.source import Source, as_line
from layertap.objects import open_store
from layertap.objects.base import ObjectStore

MANIFEST = "dataset.json"
RUN = "run.json"
FORMAT_VERSION = 1

_DOCUMENT = 0  # as the number of test inputs of a record


@dataclass(frozen=True)
class DatasetShard:
    """One shard of a dataset, and what stands before it."""

    id: int
    path: str
    records: int
    documents: int
    test_inputs: int
    records_before: int
    documents_before: int
    test_inputs_before: int
    bytes: int
    crc32c: str

    @property
    def name(self) -> str:
        """What its claim, its done-manifest and its output folder are called."""
        return shard_name(self.id)

    def first_sample(self, predictions_per_task: int) -> int:
        """The number of its first sample, counted over the whole dataset."""
        return self.test_inputs_before * predictions_per_task + self.documents_before

    def samples(self, predictions_per_task: int) -> int:
        """How many samples it brings."""
        return self.test_inputs * predictions_per_task + self.documents


@dataclass(frozen=True)
class ShardedDataset:
    """What `dataset.json` says."""

    shards: tuple[DatasetShard, ...]
    skipped: tuple[dict[str, Any], ...]
    """Malformed records that are in no shard."""

    def shard(self, shard_id: int) -> DatasetShard:
        """The shard of this id; raises UsageError."""
        if not 0 <= shard_id < len(self.shards):
            raise UsageError(f"there is no dataset shard {shard_id}; they are 0 to {len(self.shards) - 1}")
        return self.shards[shard_id]


def shard_name(shard_id: int) -> str:
    """`shard_00003` for 3."""
    return f"shard_{shard_id:05d}"


def read_dataset(store: ObjectStore) -> ShardedDataset:
    """The sharded dataset in `store`; raises UsageError where there is none, DamageError where it is garbled."""
    found = store.read(MANIFEST)
    if found is None:
        raise UsageError(
            f"{store.url}: holds no {MANIFEST}; make one with: layertap shards create --output {store.url}"
        )
    return _parse(found.data, f"{store.url}/{MANIFEST}")


def read_records_of(store: ObjectStore, shard: DatasetShard) -> bytes:
    """The shard's JSON lines; raises DamageError where they are not those that were written."""
    found = store.read(shard.path)
    if found is None or _crc32c(found.data) != shard.crc32c:
        state = "is gone" if found is None else "was changed"
        raise DamageError(f"{store.url}/{shard.path}: {state}; restore it, or make the dataset anew in another place")
    return found.data


def create_shards(config: CreateShardsConfig) -> tuple[ShardedDataset, bool]:
    """Cut the dataset into shards at `config.output`, and whether it was there already.

    Raises an InputError where the dataset cannot be cut so, RunMismatchError where another one is there.
    """
    store = open_store(config.output)
    if not store.conditional:
        raise UsageError(f"--output {config.output}: workers cannot claim shards there; give a folder or gs://")
    there = store.read(MANIFEST)
    with tempfile.TemporaryFile(prefix="layertap-shards-") as spool:
        source = Source(config)
        counts = _spool(source, spool)
        shards = tuple(_cut(store, spool, counts, config, write=there is None))
    dataset = ShardedDataset(shards, tuple(source.skipped))
    if there is None:
        encoded = _encode(dataset)
        won = store.create(MANIFEST, encoded)
        there = None if won else store.read(MANIFEST)
    if there is not None and _parse(there.data, f"{store.url}/{MANIFEST}") != dataset:
        raise _other(store, MANIFEST)
    return dataset, there is not None


def _spool(source: Source, spool: IO[bytes]) -> "array[int]":
    """Write every record to `spool`, a line each; how many test inputs each has."""
    counts = array("L")
    for record in source.records():
        spool.write(as_line(record))
        counts.append(_DOCUMENT if isinstance(record, Document) else len(record.test))
    spool.seek(0)
    return counts


def _cut(
    store: ObjectStore, spool: IO[bytes], counts: "array[int]", config: CreateShardsConfig, *, write: bool
) -> Iterator[DatasetShard]:
    documents = tests = 0
    for number, (begin, end) in enumerate(_spans(len(counts), config)):
        own = counts[begin:end]
        data = b"".join(spool.readline() for _ in own)
        shard = DatasetShard(
            id=number,
            path=f"tasks/{shard_name(number)}.jsonl",
            records=len(own),
            documents=own.count(_DOCUMENT),
            test_inputs=sum(own),
            records_before=begin,
            documents_before=documents,
            test_inputs_before=tests,
            bytes=len(data),
            crc32c=_crc32c(data),
        )
        if write:
            _write(store, shard.path, data)
        documents, tests = documents + shard.documents, tests + shard.test_inputs
        yield shard


def _spans(records: int, config: CreateShardsConfig) -> Iterator[tuple[int, int]]:
    """The records of each shard, from and to; equal numbers, but for one, or but for the last."""
    if config.tasks_per_shard is not None:
        count = -(-records // config.tasks_per_shard)
        edges = [min(number * config.tasks_per_shard, records) for number in range(count + 1)]
    else:
        count = config.num_shards or 1
        edges = [number * records // count for number in range(count + 1)]
    if count > records:
        raise UsageError(f"--num_shards {count}: the dataset has {records} sound records; give at most as many")
    return pairwise(edges)


def _write(store: ObjectStore, name: str, data: bytes) -> None:
    if store.create(name, data) is None:
        there = store.read(name)
        if there is None or there.data != data:
            raise _other(store, name)


def _other(store: ObjectStore, name: str) -> RunMismatchError:
    return RunMismatchError(
        f"{store.url}/{name}: holds another dataset, or another cut of it; give another --output, or delete that one"
    )


def _encode(dataset: ShardedDataset) -> bytes:
    header = {
        "format_version": FORMAT_VERSION,
        "totals": {
            name: sum(getattr(shard, name) for shard in dataset.shards)
            for name in ("records", "documents", "test_inputs", "bytes")
        },
        "skipped": {"count": len(dataset.skipped), "list": list(dataset.skipped)},
    }
    lines = ",\n".join("  " + json.dumps(asdict(shard)) for shard in dataset.shards)
    return f'{json.dumps(header, indent=1)[:-2]},\n "shards": [\n{lines}\n ]\n}}\n'.encode()


def _parse(data: bytes, where: str) -> ShardedDataset:
    try:
        raw = json.loads(data)
        if raw["format_version"] != FORMAT_VERSION:
            raise DamageError(f"{where}: is of format version {raw['format_version']}; this Layertap reads 1")
        shards = tuple(DatasetShard(**shard) for shard in raw["shards"])
        return ShardedDataset(shards, tuple(raw["skipped"]["list"]))
    except (ValueError, KeyError, TypeError) as error:
        raise DamageError(f"{where}: is no manifest of a sharded dataset ({error!r}); restore it") from error


def _crc32c(data: bytes) -> str:
    return f"{google_crc32c.value(data):08x}"
