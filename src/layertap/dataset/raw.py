"""What is handed from taking a dataset apart to checking it: one record, whole but not yet believed."""

from collections.abc import Iterator
from dataclasses import dataclass

from layertap.core.records import BadTask
from layertap.dataset.formats import Kind


@dataclass(frozen=True)
class RawRecord:
    """One record before it is checked; `task_id` is the id that its place gives it (file stem or key), if any."""

    where: str
    kind: Kind
    value: object
    task_id: str | None


RawRecords = Iterator[RawRecord | BadTask]
