"""The records of a dataset, after they have been read and checked.  These types are in `core`, so
that `dataset` (which makes them) and `prompts` (which takes them) need not import each other. A
`Grid` is always rectangular, 1 to 30 cells a side, with colours 0 to 9.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Grid = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Pair:
    """One demonstration or test of a task; `output` is None if the answer is unknown."""

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
    """One plain text, extracted unchanged: no augmentation, no chat template."""

    task_id: str
    text: str


@dataclass(frozen=True)
class Conversation:
    """Messages with roles. The tokenizer's own chat template turns them into text."""

    task_id: str
    messages: tuple[Mapping[str, Any], ...]
    """Each has a `role`, and may have `content`, `reasoning_content`, `tool_calls` and anything
    else that the template reads. Plain JSON."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """The functions that the assistant may call, as JSON schemas."""


@dataclass(frozen=True)
class TokenList:
    """Token ids, extracted unchanged."""

    task_id: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class BadTask:
    """A malformed record: where it is (file, line, key), its id if it has one, and the reason."""

    where: str
    task_id: str | None
    reason: str

    def __str__(self) -> str:
        named = f", task {self.task_id!r}" if self.task_id is not None else ""
        return f"{self.where}{named}: {self.reason}"


GoodRecord = Task | Document | Conversation | TokenList
Record = GoodRecord | BadTask
"""One item that reading a dataset yields."""
