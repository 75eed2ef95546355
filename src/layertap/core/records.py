"""What a dataset is made of, once it has been read and checked.

These types stand on the ground floor, beside `errors`, so that `dataset` (which makes them) and
`prompts` (which takes them) need not know each other. A `Grid` here is always rectangular, 1 to 30
cells a side, colours 0 to 9.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Grid = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Pair:
    """One demonstration or test of a task; `output` is None where the answer is not known."""

    input: Grid
    output: Grid | None


@dataclass(frozen=True)
class Task:
    """One ARC task: at least one train pair, each with its output, and at least one test pair."""

    task_id: str
    train: tuple[Pair, ...]
    test: tuple[Pair, ...]


@dataclass(frozen=True)
class Document:
    """One plain text, extracted as it stands: no augmentation, no chat template."""

    task_id: str
    text: str


@dataclass(frozen=True)
class Conversation:
    """Messages with roles, which the tokenizer's own chat template writes."""

    task_id: str
    messages: tuple[Mapping[str, Any], ...]
    """Each has a `role`; also `content`, `reasoning_content`, `tool_calls` and what else the
    template may read. Plain JSON."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """The functions that the assistant may call, as JSON schemas."""


@dataclass(frozen=True)
class TokenList:
    """Token ids, extracted as they stand."""

    task_id: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class BadTask:
    """A record that is not a task: where it stands (file, line, key), its id if it has one, and
    what is wrong.
    """

    where: str
    task_id: str | None
    reason: str

    def __str__(self) -> str:
        named = f", task {self.task_id!r}" if self.task_id is not None else ""
        return f"{self.where}{named}: {self.reason}"


GoodRecord = Task | Document | Conversation | TokenList
Record = GoodRecord | BadTask
"""What reading a dataset yields."""
