"""A dataset dealt out to workers, one JSONL file each: record i goes to stream i modulo `num_streams`.

Every id is unique in the dataset, and so across streams: a record whose id an earlier one has is refused or left out,
never renamed, because the augmentation of a prompt depends on the id. A record without an id gets one from its place
in the dataset, and its stream says it; so a record's prompts are the same whichever stream it is in, and the same as
without streams. Only `sample_idx` is counted anew in each stream.

The streams are written into a hidden folder beside the output folder, with their manifest last, and renamed together:
the output folder is there with everything in it, or not at all. An output folder that holds streams already is never
written to. The dataset is dealt out anew and compared: the same streams are a success, others an error, and so is a
stream that has been changed. One record at a time is in memory.
"""

import json
import os
import shutil
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from layertap.config.fleet import StreamsConfig
from layertap.core.records import Document, Task
from layertap.errors import DamageError, RunMismatchError, StorageError, UsageError
from layertap.fleet.source import Source, as_line
from layertap.objects.files import TEMPORARY, Checksummed, atomic_write, file_crc32c
from layertap.objects.ownership import exclusive

MANIFEST = "manifest.json"


@dataclass
class Stream:
    """One file: its name, and what it holds."""

    path: str
    records: int = 0
    test_inputs: int = 0
    bytes: int = 0
    crc32c: str = ""


@dataclass(frozen=True)
class StreamsSummary:
    """What lies in the output folder now."""

    folder: Path
    streams: tuple[Stream, ...]
    skipped: int
    already_there: bool

    def describe(self) -> str:
        """Lines for a person."""
        counts = [stream.records for stream in self.streams]
        held = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
        text = f"{sum(counts)} records in {len(counts)} streams of {held} in {self.folder}"
        if self.skipped:
            text += f"\n{self.skipped} malformed records were left out; {MANIFEST} lists them"
        return f"already there: {text}" if self.already_there else text


def create_streams(config: StreamsConfig) -> StreamsSummary:
    """Deal the dataset out into `config.output_folder`.

    Raises an InputError where the dataset cannot be dealt out so, RunMismatchError where the folder holds something
    else, DamageError where it holds these streams but not whole, StorageError where it cannot be written.
    """
    output = config.output_folder
    output = output.resolve() if output.is_symlink() else output
    hidden = output.with_name(f".{output.name}{TEMPORARY}")
    output_manifest = _manifest_of(output)
    with exclusive(hidden):
        try:
            _empty(hidden)
            source = Source(config)
            streams = _deal(source.records(), hidden, config)
            manifest = _manifest(config, streams, source.skipped)
            if output_manifest is not None:
                _require_same(output, output_manifest, manifest)
                _require_whole(output, streams)
            else:
                _publish(hidden, output, manifest)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)
    return StreamsSummary(output, tuple(streams), len(source.skipped), already_there=output_manifest is not None)


def _empty(hidden: Path) -> None:
    """Remove what a killed command left; the lock stays."""
    for left in hidden.iterdir():
        if left.name != ".lock":
            left.unlink()


def _deal(records: Iterable[Task | Document], folder: Path, config: StreamsConfig) -> list[Stream]:
    streams = [Stream(f"stream_{number:0{config.name_digits}d}.jsonl") for number in range(config.num_streams)]
    with ExitStack() as files:
        sinks = [files.enter_context(atomic_write(folder / stream.path)) for stream in streams]
        for record, stream, sink in zip(records, cycle(streams), cycle(sinks), strict=False):
            _add(record, stream, sink)
    held = sum(stream.records for stream in streams)
    if held < len(streams):
        raise UsageError(f"--num_streams {len(streams)}: the dataset has {held} sound records; give at most as many")
    return streams


def _add(record: Task | Document, stream: Stream, sink: Checksummed) -> None:
    sink.write(as_line(record))
    stream.records += 1
    stream.test_inputs += len(record.test) if isinstance(record, Task) else 0
    stream.bytes, stream.crc32c = sink.size, sink.crc32c


def _manifest(config: StreamsConfig, streams: Iterable[Stream], skipped: list[dict[str, Any]]) -> dict[str, Any]:
    listed = [asdict(stream) for stream in streams]
    totals = {name: sum(stream[name] for stream in listed) for name in ("records", "test_inputs", "bytes")}
    return {
        "format_version": 1,
        "num_streams": config.num_streams,
        "totals": totals,
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
        raise StorageError(f"{output}: cannot be made: {error.strerror or error}") from error


def _manifest_of(output: Path) -> dict[str, Any] | None:
    """The manifest of streams that are there already; None where nothing is."""
    try:
        if not output.exists() or not any(output.iterdir()):
            return None
        manifest = json.loads((output / MANIFEST).read_bytes())
    except FileNotFoundError as error:
        raise UsageError(f"{output}: holds files that are no streams; give a new folder as --output_dir") from error
    except NotADirectoryError as error:
        raise UsageError(f"{output}: is a file; give a folder as --output_dir") from error
    except OSError as error:
        raise StorageError(f"{output}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise DamageError(f"{output / MANIFEST}: is not JSON; give a new folder as --output_dir") from error
    if not isinstance(manifest, dict):
        raise DamageError(f"{output / MANIFEST}: is no manifest of streams; give a new folder as --output_dir")
    return manifest


def _require_same(output: Path, there: dict[str, Any], now: dict[str, Any]) -> None:
    for name, value in now.items():
        if there.get(name) != value:
            shown = name if isinstance(value, list | dict) else f"{name}: {there.get(name)} there, {value} now"
            raise RunMismatchError(
                f"{output} holds other streams ({shown} differ); give another --output_dir, or remove that folder"
            )


def _require_whole(output: Path, streams: Iterable[Stream]) -> None:
    for stream in streams:
        path = output / stream.path
        if not path.is_file() or file_crc32c(path) != stream.crc32c:
            raise DamageError(f"{path}: is gone or was changed; remove {output} and run the same command again")
