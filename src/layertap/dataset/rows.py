"""A checked record as a JSON object: the inverse of reading.

Whatever shape a record was read in, it is written in the simplest one: a task with `train` and `test`, a text with
`text`, and its id beside it. Reading the row back gives an equal record, also with the id that its old place gave it.
"""

from typing import Any

from layertap.core.records import Document, Grid, Pair, Task


def as_row(record: Task | Document) -> dict[str, Any]:
    """The row that `read_records` reads as an equal record."""
    if isinstance(record, Document):
        return {"task_id": record.task_id, "text": record.text}
    return {"task_id": record.task_id, "train": _pairs(record.train), "test": _pairs(record.test)}


def _pairs(pairs: tuple[Pair, ...]) -> list[dict[str, Grid]]:
    return [
        {"input": pair.input} if pair.output is None else {"input": pair.input, "output": pair.output} for pair in pairs
    ]
