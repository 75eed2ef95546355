"""Which record a row holds: the whole row, or one column of it, the same in every source."""

import json
from pathlib import Path
from typing import Any

import pytest

from layertap.core.records import BadTask, Conversation, Document, Pair, Task, TokenList
from layertap.dataset import read_records
from layertap.errors import DatasetError

_PAIRS = [{"input": [[1]], "output": [[2]]}, {"input": [[5]], "output": [[6]]}]
_TASK = {"train": _PAIRS[:1], "test": _PAIRS[1:]}
_CHAT = [{"role": "user", "content": "Hello"}]
TASK = Task("a", (Pair(((1,),), ((2,),)),), (Pair(((5,),), ((6,),)),))

_LIKE_TASKS = (
    "[[1, 2], [3, 4]]",
    '{"test": [1]}',
    '{"examples": [1, 2]}',
    '{"train": "slow", "test": []}',
    '{"examples": ["one", "two"]}',
    '{"train": "slow", "examples": [[[[1]], [[2]]], [[[1]], [[2]]]]}',
    '[{"input": "a question", "output": "an answer"}, {"input": "b", "output": "c"}]',
)
VALUES: list[tuple[Any, Any]] = [
    ("A sentence.", Document("a", "A sentence.")),
    ("[1, 2]", Document("a", "[1, 2]")),
    ('{"a": 1}', Document("a", '{"a": 1}')),
    ("{ broken", Document("a", "{ broken")),
    *((text, Document("a", text)) for text in _LIKE_TASKS),
    (_TASK, TASK),
    (_PAIRS, TASK),
    ([[pair["input"], pair["output"]] for pair in _PAIRS], TASK),
    (_CHAT, Conversation("a", tuple(_CHAT))),
    ({"messages": _CHAT}, Conversation("a", tuple(_CHAT))),
    ([{"from": "human", "value": "Hello"}], Conversation("a", tuple(_CHAT))),
    ([1, 2], TokenList("a", (1, 2))),
]


def _rows(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(("value", "record"), [*VALUES, ({"input_ids": [1, 2], "text": None}, TokenList("a", (1, 2)))])
def test_a_column_may_hold_any_record(tmp_path: Path, value: Any, record: Any) -> None:
    row = {"id": "a", "text": "not this", "train": 5, "what": value}
    path = _rows(tmp_path / "rows.jsonl", row, row | {"id": "b"})
    assert next(read_records(path, column="what")) == record
    whole = tmp_path / "rows.json"
    whole.write_text(json.dumps([row], indent=1))
    assert list(read_records(str(whole), column="what")) == [record]


@pytest.mark.parametrize(("value", "record"), [it for it in VALUES if not isinstance(it[0], str)])
def test_a_column_may_hold_the_json_of_a_record(tmp_path: Path, value: Any, record: Any) -> None:
    name = "token_ids" if isinstance(record, TokenList) else "what"
    assert list(read_records(_rows(tmp_path / "r.jsonl", {"id": "a", name: json.dumps(value)}), column=name)) == [
        record
    ]


def test_tools_stand_beside_a_conversation(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    path = _rows(tmp_path / "r.jsonl", {"id": "a", "talk": _CHAT, "tools": json.dumps(tools)})
    assert list(read_records(path, column="talk")) == [Conversation("a", tuple(_CHAT), tuple(tools))]


def test_the_json_of_pairs_has_them_also_where_one_of_them_is_malformed(tmp_path: Path) -> None:
    path = _rows(tmp_path / "r.jsonl", {"id": "a", "what": json.dumps([_PAIRS[0], {"input": [[11]]}, _PAIRS[1]])})
    bad, task = read_records(path, column="what")
    assert task == TASK
    assert isinstance(bad, BadTask)


def test_a_system_text_and_a_mask_stand_beside_a_column(tmp_path: Path) -> None:
    row = {"id": "a", "talk": _CHAT, "ids": [1, 2, 0], "system": "Be kind.", "attention_mask": [1, 1, 0]}
    path = _rows(tmp_path / "r.jsonl", row | {"json": json.dumps({"messages": _CHAT, "system": None})})
    system = {"role": "system", "content": "Be kind."}
    assert list(read_records(path, column="talk")) == [Conversation("a", (system, *_CHAT))]
    assert list(read_records(path, column="json")) == [Conversation("a", (system, *_CHAT))]
    assert list(read_records(path, column="ids")) == [TokenList("a", (1, 2))]


def test_a_row_without_the_column_is_named_with_what_it_has(tmp_path: Path) -> None:
    path = _rows(tmp_path / "r.jsonl", {"body": "x"}, {"body": None, "title": "y"}, 5)
    _, lacking, number = read_records(path, column="body")
    assert lacking == BadTask(f"{path} line 2", None, "its column 'body' is null or missing; it has title")
    assert number == BadTask(f"{path} line 3", None, "is a number, not a row with the column 'body'")


def test_a_column_that_no_row_has_is_refused(tmp_path: Path) -> None:
    path = _rows(tmp_path / "r.jsonl", {"text": "x", "n": 1}, {"text": "y"})
    with pytest.raises(DatasetError, match="the keys 'text', 'n', not a record; it lacks 'body', the --column_name"):
        list(read_records(path, column="body"))


def test_a_row_without_a_known_key_says_what_it_has(tmp_path: Path) -> None:
    path = _rows(tmp_path / "r.jsonl", {"text": "x"}, {"id": 5, "content": "y", "n": None})
    _, bad = read_records(path)
    assert isinstance(bad, BadTask)
    assert bad.task_id == "5"
    assert bad.reason.startswith(
        "is an object with the keys 'id', 'content', which is no record that Layertap knows; it has none"
    )
    assert bad.reason.endswith("name the column with the data with --column_name")


def test_nulls_are_absent(tmp_path: Path) -> None:
    rows = {"train": None, "test": None, "text": "x"}, {"text": None, "messages": None, "input_ids": [3]}
    path = _rows(tmp_path / "r.jsonl", *rows)
    assert list(read_records(path)) == [Document("text_00000000", "x"), TokenList("tokens_00000001", (3,))]


@pytest.mark.parametrize(
    "task",
    [
        {"train": [{"input": [[10]], "output": [[1]]}], "test": [{"input": [[1]], "output": [[1]]}]},
        {"examples": [[[[10]], [[1]]], [[[1]], [[1]]]]},
        [{"input": [[10]], "output": [[1]]}, {"input": [[1, 1], [1]], "output": [[1]]}],
    ],
)
def test_a_task_with_a_wrong_cell_is_no_text(tmp_path, task):
    """It was meant as a task, so it is named, and not silently read as a text."""
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"id": "a", "what": json.dumps(task)}))
    (record,) = read_records(str(path), column="what")
    assert isinstance(record, BadTask)
