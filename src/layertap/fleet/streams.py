"""Split a dataset into one JSONL file per worker: record i goes to stream i modulo `num_streams`.

An id occurs once in the dataset, and so in one stream. A record with the id of an earlier record is
refused or left out, never renamed, because the augmentations of a prompt depend on the id. A record
without an id gets one from its place in the dataset, and its stream stores that id. So the prompts
of a record are the same in every stream, and the same as without streams. Only `sample_idx` starts
from 0 in each stream.

The streams are written into a hidden folder beside the output folder. Their manifest is written
last, and then the folder is renamed: the output folder holds everything, or does not exist. A
folder that already holds streams is never written to: the dataset is split again and compared.
Memory holds one record at a time.
"""

import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from layertap.config.fleet import DealtConfig, StreamsConfig
from layertap.core.records import BadTask, GoodRecord, Task
from layertap.dataset import as_row, open_records, opening_lines
from layertap.errors import BadTaskError, DamageError, RunMismatchError, StorageError, UsageError
from layertap.objects.files import TEMPORARY, Checksummed, atomic_write, file_crc32c
from layertap.objects.folder_lock import exclusive

MANIFEST = "manifest.json"


@dataclass
class Stream:
    """One file: its name and its content so far."""

    path: str
    records: int = 0
    test_inputs: int = 0
    bytes: int = 0
    crc32c: str = ""

    def add(self, record: GoodRecord, sink: Checksummed) -> None:
        """Write another record."""
        sink.write(encode_record(record))
        self.records += 1
        self.test_inputs += len(record.test) if isinstance(record, Task) else 0
        self.bytes, self.crc32c = sink.size, sink.crc32c


@dataclass(frozen=True)
class FilesSummary:
    """The files of a split dataset, and their sizes."""

    kind: str
    records: Sequence[int]
    """How many records each file holds."""
    place: object
    manifest: str
    skipped: int
    already_there: bool

    def describe(self) -> str:
        """Return lines for the user."""
        least, most = min(self.records), max(self.records)
        held = f"{least}" if least == most else f"{least} to {most}"
        text = f"{sum(self.records)} records in {len(self.records)} {self.kind} of {held} in {self.place}"
        if self.skipped:
            text += f"\n{self.skipped} malformed records were left out; {self.manifest} lists them"
        return f"already there: {text}" if self.already_there else text


def create_streams(config: StreamsConfig) -> FilesSummary:
    """Split the dataset into streams in `config.output_folder`.

    Raises an InputError if the dataset cannot be split, RunMismatchError if the folder holds other
    streams, DamageError if a stream there was changed, StorageError if writing fails.
    """
    output = config.output_folder
    output = output.resolve() if output.is_symlink() else output
    hidden = output.with_name(f".{output.name}{TEMPORARY}")
    there = _read_manifest(output)
    skipped: list[dict[str, Any]] = []
    with exclusive(hidden):
        try:
            for left in hidden.iterdir():  # leftovers of a command that was killed
                if left.name != ".lock":
                    left.unlink()
            streams = _deal(read_sound_records(config, skipped), hidden, config)
            manifest = _make_manifest(streams, skipped)
            if there is None:
                _publish(hidden, output, manifest)
            else:
                _require_same(output, there, manifest)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)
    counts = [stream.records for stream in streams]
    return FilesSummary("streams", counts, output, MANIFEST, len(skipped), already_there=there is not None)


def read_sound_records(config: DealtConfig, skipped: list[dict[str, Any]]) -> Iterator[GoodRecord]:
    """Yield the valid records of a dataset in order; add the others to `skipped`.

    With `--on_bad_task error`, raises BadTaskError at the first malformed record.
    """
    for line in opening_lines(config):
        print(line, file=sys.stderr, flush=True)
    for record in open_records(config, config.max_samples):
        if not isinstance(record, BadTask):
            yield record
        elif config.on_bad_task == "error":
            raise BadTaskError(f"{record}. Repair it, or pass --on_bad_task skip")
        else:
            skipped.append(asdict(record))


def encode_record(record: GoodRecord) -> bytes:
    """Encode a record as a line of JSONL, in ASCII."""
    return json.dumps(as_row(record), separators=(",", ":")).encode() + b"\n"


def _deal(records: Iterable[GoodRecord], folder: Path, config: StreamsConfig) -> list[Stream]:
    streams = [Stream(f"stream_{number:0{config.name_digits}d}.jsonl") for number in range(config.num_streams)]
    with ExitStack() as files:
        sinks = [files.enter_context(atomic_write(folder / stream.path)) for stream in streams]
        for record, stream, sink in zip(records, cycle(streams), cycle(sinks), strict=False):
            stream.add(record, sink)
    held = sum(stream.records for stream in streams)
    if held < len(streams):
        raise UsageError(f"--num_streams {len(streams)}: the dataset has {held} sound records; give at most as many")
    return streams


def _make_manifest(streams: Sequence[Stream], skipped: list[dict[str, Any]]) -> dict[str, Any]:
    listed = [asdict(stream) for stream in streams]
    return {
        "format_version": 1,
        "num_streams": len(streams),
        "totals": {name: sum(stream[name] for stream in listed) for name in ("records", "test_inputs", "bytes")},
        "skipped": {"count": len(skipped), "list": skipped},
        "streams": listed,
    }


def _publish(hidden: Path, output: Path, manifest: dict[str, Any]) -> None:
    with atomic_write(hidden / MANIFEST) as file:
        file.write(json.dumps(manifest, indent=1).encode() + b"\n")
    (hidden / ".lock").unlink()
    try:
        os.rename(hidden, output)
    except OSError as error:
        raise StorageError(f"{output}: cannot be created: {error.strerror or error}") from error


def _read_manifest(output: Path) -> dict[str, Any] | None:
    """Read the manifest of the streams in a folder; None if it is empty or does not exist."""
    advice = "give a new folder as --output_dir"
    try:
        if not output.exists() or not any(output.iterdir()):
            return None
        manifest = json.loads((output / MANIFEST).read_bytes())
        if not isinstance(manifest, dict):
            raise ValueError("no object")
        return manifest
    except FileNotFoundError as error:
        raise UsageError(f"{output}: holds files that are not streams; {advice}") from error
    except NotADirectoryError as error:
        raise UsageError(f"{output}: is a file; {advice}") from error
    except OSError as error:
        raise StorageError(f"{output}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise DamageError(
            f"{output / MANIFEST}: is not a valid manifest of streams; {advice}, or remove that one"
        ) from error


def _require_same(output: Path, there: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise RunMismatchError if the manifests differ, DamageError if a file does not match them."""
    if there != now:
        raise RunMismatchError(
            f"{output} holds other streams ({_difference(MANIFEST, there, now)}); give another --output_dir, or"
            " remove that folder"
        )
    for stream in now["streams"]:
        path = output / stream["path"]
        if not path.is_file() or file_crc32c(path) != stream["crc32c"]:
            raise DamageError(f"{path}: is missing or was changed; remove {output} and run the same command again")


def _difference(name: str, there: object, now: object) -> str:
    """Describe the first value that differs, as deep as both have the same structure."""
    if isinstance(there, dict) and isinstance(now, dict):
        pairs = {key: (there.get(key), now.get(key)) for key in now | there}
    elif isinstance(there, list) and isinstance(now, list) and len(there) == len(now):
        pairs = {f"{name}[{number}]": pair for number, pair in enumerate(zip(there, now, strict=True))}
    else:
        return f"{name}: {json.dumps(there)} there, {json.dumps(now)} now"
    return next(_difference(key, *pair) for key, pair in pairs.items() if pair[0] != pair[1])
