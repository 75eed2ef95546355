"""Record what is already written in an export's folder, so that the same command resumes.

    layertap_export.json               what is exported, and how; written first and last
    layertap_export/part_00001.json    facts about the first shard, and its files' sizes

A shard's note is written once its files are complete. So a shard counts if it has a note and its
files have these sizes. After a process was killed, at most one shard is written again. The notes do
not contain times or places, so a resumed export is byte for byte the same as an uninterrupted one.

Two processes with the same command do not harm each other, because both write the same bytes, and
each file is complete or does not exist. At worst one of them reports a missing temporary file.
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
    """The notes in an export's folder: created, or found and compared.

    Raises UsageError if something else is there, RunMismatchError if it is another export.
    """

    def __init__(self, folder: Path, plan: Mapping[str, Any], source: str) -> None:
        """`plan` is everything that decides the bytes, as JSON; `source` is where they come
        from.
        """
        self.folder = folder
        self._head = {"format_version": _VERSION, "source": source, **plan}
        found = _read_json(folder / HEAD) if _is_begun(folder) else None
        if found is None:
            _write_json(folder / HEAD, {**self._head, "complete": False})
        else:
            _require_same(folder, found, self._head)
            remove_leftovers(folder)

    def part(self, shard: int) -> Mapping[str, Any] | None:
        """Return the facts about a written shard; None if it must be written."""
        note = _read_json(self._note(shard))
        if note is None:
            return None
        try:
            whole = all((self.folder / name).stat().st_size == size for name, size in note["files"].items())
        except FileNotFoundError:
            whole = False
        return note if whole else None

    def commit(self, shard: int, part: Mapping[str, Any], files: tuple[str, ...]) -> Mapping[str, Any]:
        """Record that a shard is written; return the note."""
        note = {**part, "files": {name: (self.folder / name).stat().st_size for name in files}}
        _write_json(self._note(shard), note)
        return note

    def complete(self, totals: Mapping[str, Any]) -> None:
        """Record that everything is written."""
        _write_json(self.folder / HEAD, {**self._head, "complete": True, **totals})

    def _note(self, shard: int) -> Path:
        return self.folder / NOTES / f"part_{shard + 1:05d}.json"


def _is_begun(folder: Path) -> bool:
    """Return whether an export was begun there; raises UsageError if something else is there."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is a file; give a new folder to export to")
    if (folder / HEAD).is_file():
        return True
    others = sorted(path.name for path in folder.iterdir() if HEAD not in path.name) if folder.is_dir() else []
    if others:
        raise UsageError(
            f"{folder}: is not an export, and holds {', '.join(others[:3])}; give a new folder to export to"
        )
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
