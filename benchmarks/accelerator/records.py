"""The lines of results.jsonl: one a figure, whole and on the disk before the next case begins."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Record = dict[str, Any]
RESULTS, REPORT, LOG = "results.jsonl", "report.md", "log.txt"


def append(folder: Path, record: Mapping[str, Any]) -> None:
    """Add one line; what was written before survives whatever happens next."""
    with (folder / RESULTS).open("a") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read(folder: Path) -> list[Record]:
    """All lines that are whole: a process that was killed may have left half of one."""
    path = folder / RESULTS
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def begun(records: list[Record], part: str) -> list[str]:
    """The cases of a part that a process has begun, in order."""
    return [record["case"] for record in records if record["part"] == part and record["what"] == "begun"]


def ended(records: list[Record], part: str) -> set[str]:
    """The cases of a part that have figures, or failed."""
    kinds = ("figures", "failed")
    return {record["case"] for record in records if record["part"] == part and record["what"] in kinds}


def remaining(records: list[Record], part: str) -> set[str] | None:
    """The cases of a part that no process has begun; None if none got far enough to name them."""
    named = [record["cases"] for record in records if record["part"] == part and record["what"] == "cases"]
    return set(named[-1]) - set(begun(records, part)) if named else None
