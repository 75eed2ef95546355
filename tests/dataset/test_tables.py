"""Parquet tables: their rows are read like lines, and only the columns that can matter are read."""

import json
import tracemalloc
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from layertap.core.records import BadTask, Conversation, Document, Pair, Task, TokenList
from layertap.dataset import read_records
from layertap.errors import DatasetError, UsageError

_MESSAGES = [
    {"role": "user", "content": "Add 1 and 2."},
    {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}]},
    {"role": "tool", "content": "3", "name": "add"},
]


def write(path: Path, rows: list[dict[str, Any]], **options: Any) -> str:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, **options)
    return str(path)


def test_tables_and_lines_give_the_same_records(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "messages": _MESSAGES},
        {"id": "b", "input_ids": [1, 2, 3]},
        {"id": "c", "text": "x", "day": date(2026, 1, 1)},
        {"id": None, "text": "y"},
    ]
    keys = {key for row in rows for key in row}
    path = write(tmp_path / "t.parquet", [dict.fromkeys(keys) | row for row in rows])
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row, default=str) + "\n" for row in rows))
    assert list(read_records(path)) == list(read_records(str(tmp_path / "t.jsonl")))
    expected = [Conversation("a", tuple(_MESSAGES)), TokenList("b", (1, 2, 3)), Document("c", "x")]
    assert list(read_records(path)) == [*expected, Document("text_00000003", "y")]


def test_published_tasks_are_the_same_in_a_table(tmp_path: Path, demo_tasks: Path) -> None:
    rows = [json.loads(line) for line in demo_tasks.read_text().splitlines()]
    assert list(read_records(write(tmp_path / "t.parquet", rows))) == list(read_records(str(demo_tasks)))


_SIDES = {"input": [[[1]], [[5]]], "output": [[[2]], [[6]]]}
_TASK = Task("a", (Pair(((1,),), ((2,),)),), (Pair(((5,),), ((6,),)),))


@pytest.mark.parametrize(
    ("row", "column"),
    [
        (
            {"train": {key: side[:1] for key, side in _SIDES.items()}, "test": {"input": [[[5]]], "output": [[[6]]]}},
            None,
        ),
        (
            {"what": {"train": {"input": [[[1]]], "output": [[[2]]]}, "test": {"input": [[[5]]], "output": [[[6]]]}}},
            "what",
        ),
        ({"what": _SIDES}, "what"),
    ],
)
def test_pairs_may_be_an_object_of_lists(tmp_path: Path, row: dict[str, Any], column: str | None) -> None:
    assert list(read_records(write(tmp_path / "t.parquet", [{"id": "a", **row}]), column=column)) == [_TASK]


@pytest.mark.parametrize("column", [None, "messages"])
def test_what_a_tool_is_given_is_no_list_of_pairs(tmp_path: Path, column: str | None) -> None:
    """An object of `input` and `output` once became a list of pairs in any place."""
    called = {"function": {"name": "solve", "arguments": _SIDES}}
    messages = [{"role": "assistant", "content": "Look.", "tool_calls": [called]}]
    path = write(tmp_path / "t.parquet", [{"id": "a", "messages": messages}])
    assert list(read_records(path, column=column)) == [Conversation("a", tuple(messages))]


def test_sides_of_different_lengths_are_a_bad_record(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", [{"train": _SIDES, "test": {"input": [[[1]]], "output": [[[1]], [[2]]]}}])
    (bad,) = read_records(path)
    assert isinstance(bad, BadTask)
    assert bad.reason == "'test' is an object, not a list of pairs"


@pytest.mark.parametrize("column", [None, "messages", "input_ids"])
def test_what_belongs_to_a_record_is_read_from_a_table_too(tmp_path: Path, column: str | None) -> None:
    row = {"id": "a", "system": "Be kind.", "attention_mask": [0, 1, 1]}
    talk, ids = {"messages": [{"role": "user", "content": "x"}]}, {"input_ids": [9, 1, 2]}
    path = write(tmp_path / "t.parquet", [row | (ids if column == "input_ids" else talk) | {"other": 1}])
    (record,) = read_records(path, column=column)
    if column == "input_ids":
        assert record == TokenList("a", (1, 2))
    else:
        assert record == Conversation("a", ({"role": "system", "content": "Be kind."}, *talk["messages"]))


def test_a_column_of_a_table(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.parquet", [{"uid": "a", "body": "x", "text": "no"}, {"uid": "b", "body": None, "text": "no"}]
    )
    good, bad = read_records(path, column="body")
    assert good == Document("a", "x")
    assert isinstance(bad, BadTask)
    assert (bad.where, bad.reason) == (f"{path} row 2", "its column 'body' is null or missing; it has uid")


def test_columns_that_are_not_there_are_refused_with_those_that_are(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", [{"id": "a", "content": "x"}])
    with pytest.raises(UsageError, match=r"--column_name body: .*t\.parquet has the columns id, content"):
        list(read_records(path, column="body"))
    with pytest.raises(
        DatasetError, match=r"t\.parquet: has the columns id, content, and none of train, .*--column_name"
    ):
        list(read_records(path))
    with pytest.raises(DatasetError, match=r"is a Parquet table, not jsonl; leave --dataset_format out"):
        list(read_records(path, dataset_format="jsonl"))


def test_memory_stays_flat_however_long_a_group_of_rows_is(tmp_path: Path) -> None:
    def peak(rows: int) -> int:
        table = [{"text": f"{number:1000d}", "other": "y" * 1000} for number in range(rows)]
        path = write(tmp_path / f"{rows}.parquet", table, row_group_size=rows, compression="none", use_dictionary=False)
        before = pyarrow.total_allocated_bytes()
        tracemalloc.start()
        most = 0
        for _ in read_records(path):
            most = max(most, pyarrow.total_allocated_bytes() - before + tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        return most

    assert peak(8000) < 1.2 * peak(2000)
