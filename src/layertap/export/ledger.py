"""What is written in an export's folder already, so that the same command goes on.

    layertap_export.json               what is exported, and how; written first and last
    layertap_export/part_00001.json    what is known of the first shard, and its files' sizes

A part's note is written when its files are whole, so a shard counts if it has a note and its files
have these sizes. Of a process that was killed, at most one shard is written again. Nothing in the
notes tells when or where they were written: an export that was stopped and went on is byte for byte
one that was not.

Two processes with the same command do no harm to each other, since both write the same bytes and
each file is whole or not there; at worst one of them misses a temporary file and says so.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from layertap.core.strict_json import dump_json
from layertap.errors import RunMismatchError, StorageError, UsageError
from layertap.objects.files import atomic_write, remove_leftovers
from layertap.shards.manifest import differences

HEAD = "layertap_export.json"
NOTES = "layertap_export"
_VERSION = 1


class Ledger:
    """The notes in an export's folder; made, or found and compared.

    Raises UsageError where something else is there, and RunMismatchError where another export is.
    """

    def __init__(self, folder: Path, plan: Mapping[str, Any], source: str) -> None:
        """`plan` is all that decides the bytes, as JSON; `source` is where they come from."""
        self.folder = folder
        self._head = {"format_version": _VERSION, "source": source, **plan}
        found = _read_json(folder / HEAD) if _is_begun(folder) else None
        if found is None:
            _write_json(folder / HEAD, {**self._head, "complete": False})
        else:
            _require_same(folder, found, self._head)
            remove_leftovers(folder)

    def part(self, shard: int) -> Mapping[str, Any] | None:
        """What is known of a shard that was written; None where it is to be written."""
        note = _read_json(self._note(shard))
        if note is None:
            return None
        try:
            whole = all((self.folder / name).stat().st_size == size for name, size in note["files"].items())
        except FileNotFoundError:
            whole = False
        return note if whole else None

    def commit(self, shard: int, part: Mapping[str, Any], files: tuple[str, ...]) -> Mapping[str, Any]:
        """Note that a shard is written; the note."""
        note = {**part, "files": {name: (self.folder / name).stat().st_size for name in files}}
        _write_json(self._note(shard), note)
        return note

    def complete(self, totals: Mapping[str, Any]) -> None:
        """Note that all is written."""
        _write_json(self.folder / HEAD, {**self._head, "complete": True, **totals})

    def _note(self, shard: int) -> Path:
        return self.folder / NOTES / f"part_{shard + 1:05d}.json"


def _is_begun(folder: Path) -> bool:
    """Whether an export was begun there; raises UsageError where something else is."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is a file; give a new folder to export to")
    if (folder / HEAD).is_file():
        return True
    others = sorted(path.name for path in folder.iterdir() if HEAD not in path.name) if folder.is_dir() else []
    if others:
        raise UsageError(f"{folder}: is no export, and holds {', '.join(others[:3])}; give a new folder to export to")
    return False


def _require_same(folder: Path, found: Mapping[str, Any], head: Mapping[str, Any]) -> None:
    there = {name: found.get(name) for name in head if name != "source"}
    differing = differences(there, {name: value for name, value in head.items() if name != "source"})
    if there["dataset"] != head["dataset"]:
        differing = [line for line in differing if not line.startswith("dataset:")]
        differing.append(f"the source: {found.get('source')} there, {head['source']} now, or it has grown since")
    if differing:
        raise RunMismatchError(
            f"{folder} holds another export; give another folder, or the same settings:\n  " + "\n  ".join(differing)
        )


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StorageError(f"{path}: cannot be read ({error}); delete it and run the same command again") from error


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with atomic_write(path) as sink:
        sink.write(dump_json(content, indent=2).encode() + b"\n")
