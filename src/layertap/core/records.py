"""What a dataset is made of, once it has been read and checked.

These types stand on the ground floor, beside `errors`, so that `dataset` (which makes them) and
`prompts` (which takes them) need not know each other. A `Grid` here is always rectangular, 1 to 30
cells a side, colours 0 to 9.
"""

from dataclasses import dataclass

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


Record = Task | Document | BadTask
