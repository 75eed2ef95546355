"""The dataset that is dealt out, as sound records and what was left out of it."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from layertap.config.fleet import SourceConfig
from layertap.core.records import BadTask, Document, Record, Task
from layertap.dataset import as_row, read_hub_records, read_records
from layertap.errors import BadTaskError


class Source:
    """The sound records of a dataset; `skipped` grows as they are read."""

    def __init__(self, config: SourceConfig) -> None:
        self._config = config
        self.skipped: list[dict[str, Any]] = []

    def records(self) -> Iterator[Task | Document]:
        """The records in dataset order; raises BadTaskError at the first that is none, under `--on_bad_task error`."""
        for record in _read(self._config):
            if not isinstance(record, BadTask):
                yield record
            elif self._config.on_bad_task == "error":
                raise BadTaskError(f"{record}. Repair it, or pass --on_bad_task skip")
            else:
                self.skipped.append(asdict(record))


def as_line(record: Task | Document) -> bytes:
    """A record as a line of JSONL, in ASCII."""
    return json.dumps(as_row(record), separators=(",", ":")).encode() + b"\n"


def _read(config: SourceConfig) -> Iterator[Record]:
    if config.dataset_path is not None:
        return read_records(config.dataset_path, dataset_format=config.dataset_format, max_tasks=config.max_samples)
    assert config.dataset_name is not None
    return read_hub_records(
        config.dataset_name,
        config=config.dataset_config,
        split=config.dataset_split,
        column=config.column_name,
        max_tasks=config.max_samples,
    )
