"""A dataset in shards, in a folder or bucket that all workers can reach.

    dataset.json                which records each shard holds, and how many samples precede it
    tasks/shard_00003.jsonl     the records of one shard
    run.json                    the settings that decide the bytes, for all workers (worker.py)
    claims/shard_00003.json     who has the shard, or why it failed (claims.py)
    done/shard_00003.json       who finished the shard, and which output files hold its activations

A shard holds consecutive records. `dataset.json` says how many documents and test inputs precede
it. With `--predictions_per_task` this gives the number of its first sample. So `sample_idx` is the
same as in a run over the whole dataset, whichever worker extracts the shard.

The length of a shard depends on the number of records, so the records are first written to a local
temporary file. This costs disk space for one copy of the dataset, and memory for one shard.
`dataset.json` is written last and once: either all shards exist, or there is no dataset. The same
command, run again, finds its own shards and writes the missing ones.
"""

import json
import tempfile
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import IO, Any

from layertap.config.fleet import CreateShardsConfig
from layertap.core.records import Task
from layertap.core.strict_json import dump_json
from layertap.errors import DamageError, RunMismatchError, UsageError
from layertap.fleet.streams import encode_record, read_sound_records
from layertap.objects import open_store
from layertap.objects.base import ObjectStore
from layertap.objects.files import crc32c_of
from layertap.objects.retry import Retry

MANIFEST = "dataset.json"
RUN = "run.json"
FORMAT_VERSION = 1

_DOCUMENT = 0  # stands in for a record's number of test inputs


@dataclass(frozen=True)
class DatasetShard:
    """One shard of a dataset, and what precedes it."""

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
        """The name of its claim, its done-manifest and its output folder."""
        return shard_name(self.id)

    def first_sample(self, predictions_per_task: int, per_text: int = 1) -> int:
        """Return the number of its first sample in the whole dataset; a text has `per_text`
        numbers.
        """
        return self.test_inputs_before * predictions_per_task + self.documents_before * per_text

    def samples(self, predictions_per_task: int, per_text: int = 1) -> int:
        """Return how many sample numbers it has."""
        return self.test_inputs * predictions_per_task + self.documents * per_text


@dataclass(frozen=True)
class ShardedDataset:
    """The content of `dataset.json`."""

    shards: tuple[DatasetShard, ...]
    skipped: tuple[dict[str, Any], ...]
    """Malformed records, which are in no shard."""

    def shard(self, shard_id: int) -> DatasetShard:
        """Return the shard with this id; raises UsageError."""
        if not 0 <= shard_id < len(self.shards):
            raise UsageError(f"there is no dataset shard {shard_id}; give 0 to {len(self.shards) - 1}")
        return self.shards[shard_id]


def shard_name(shard_id: int) -> str:
    """Return `shard_00003` for 3."""
    return f"shard_{shard_id:05d}"


@contextmanager
def open_claimable(url: str, flag: str = "", retry: Retry | None = None) -> Iterator[ObjectStore]:
    """Open the store of a sharded dataset, given by `flag`; UsageError if it cannot hold claims."""
    store = open_store(url, retry)
    try:
        if not store.conditional:
            raise UsageError(f"{flag} {url}: workers cannot claim shards there; give a folder or gs://".lstrip())
        yield store
    finally:
        store.close()


def read_dataset(store: ObjectStore) -> ShardedDataset:
    """Read the dataset in `store`; raises UsageError if there is none, DamageError if damaged."""
    found = store.read(MANIFEST)
    if found is None:
        raise UsageError(f"{store.url}: has no {MANIFEST}; create it with: layertap shards create --output {store.url}")
    return _parse(found.data, f"{store.url}/{MANIFEST}")


def read_shard(store: ObjectStore, shard: DatasetShard) -> bytes:
    """Return the records of a shard, as JSON lines; raises DamageError if they were changed."""
    found = store.read(shard.path)
    if found is None or crc32c_of([found.data]) != shard.crc32c:
        state = "is missing" if found is None else "was changed"
        raise DamageError(
            f"{store.url}/{shard.path}: {state}; restore it, or create the dataset again in another place"
        )
    return found.data


def create_shards(config: CreateShardsConfig) -> tuple[ShardedDataset, bool]:
    """Split the dataset into shards at `config.output`; return it, and whether it already existed.

    Raises an InputError if the dataset cannot be split, RunMismatchError if another one exists
    there.
    """
    with open_claimable(config.output, "--output") as store, tempfile.TemporaryFile(prefix="layertap-shards-") as spool:
        there = store.read(MANIFEST)
        skipped: list[dict[str, Any]] = []
        counts = array("L")
        for record in read_sound_records(config, skipped):
            spool.write(encode_record(record))
            counts.append(len(record.test) if isinstance(record, Task) else _DOCUMENT)
        spool.seek(0)
        shards = []
        for shard, data in _cut(spool, counts, config):
            if there is None:
                _write(store, shard.path, data)
            shards.append(shard)
        dataset = ShardedDataset(tuple(shards), tuple(skipped))
        if there is None and store.create(MANIFEST, _encode(dataset)) is not None:
            return dataset, False
        if read_dataset(store) != dataset:
            raise _differs(store, MANIFEST)
        return dataset, True


def _cut(spool: IO[bytes], counts: "array[int]", config: CreateShardsConfig) -> Iterator[tuple[DatasetShard, bytes]]:
    """Yield each shard with its lines of `spool`; `counts` has each record's test inputs."""
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
            crc32c=crc32c_of([data]),
        )
        documents, tests = documents + shard.documents, tests + shard.test_inputs
        yield shard, data


def _spans(records: int, config: CreateShardsConfig) -> Iterator[tuple[int, int]]:
    """Return the range of records of each shard: equally many, up to one more or a short last
    one.
    """
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
            raise _differs(store, name)


def _differs(store: ObjectStore, name: str) -> RunMismatchError:
    return RunMismatchError(
        f"{store.url}/{name}: holds another dataset, or another split of it; give another --output, or delete it"
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
    lines = ",\n".join("  " + dump_json(asdict(shard)) for shard in dataset.shards)
    return f'{dump_json(header, indent=1)[:-2]},\n "shards": [\n{lines}\n ]\n}}\n'.encode()


def _parse(data: bytes, where: str) -> ShardedDataset:
    try:
        raw = json.loads(data)
        if raw["format_version"] != FORMAT_VERSION:
            raise DamageError(f"{where}: has format version {raw['format_version']}; this Layertap reads version 1")
        shards = tuple(DatasetShard(**shard) for shard in raw["shards"])
        return ShardedDataset(shards, tuple(raw["skipped"]["list"]))
    except (ValueError, KeyError, TypeError) as error:
        raise DamageError(f"{where}: is not a valid manifest of a sharded dataset ({error!r}); restore it") from error
