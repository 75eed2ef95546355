"""Hugging Face datasets, made on the spot: rows as lines, columns as records."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from runs import changed, extract_some, small_run

from layertap.config.extract import ExtractConfig
from layertap.core.records import BadTask, Conversation, Document, Pair, Task, TokenList
from layertap.dataset import open_records, read_hub_records, read_records
from layertap.demo.tasks import make_tasks, write_tasks
from layertap.errors import DatasetError, RunMismatchError, UsageError
from layertap.pipeline.run import extract

datasets = pytest.importorskip("datasets")

_PAIRS = [{"input": [[1]], "output": [[2]]}, {"input": [[3]], "output": [[4]]}, {"input": [[5]], "output": [[6]]}]
_TASK = {"train": _PAIRS[:2], "test": _PAIRS[2:]}
_EXAMPLES = [[pair["input"], pair["output"]] for pair in _PAIRS]
TASK = Task("a", tuple(Pair(((n,),), ((n + 1,),)) for n in (1, 3)), (Pair(((5,),), ((6,),)),))


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()


def folder(tmp_path: Path, rows: list[dict[str, Any]], features: Any = None) -> str:
    """A folder of Parquet, as datasets on the Hub are."""
    (tmp_path / "set").mkdir()
    made = datasets.Dataset.from_list(rows, features=features)
    made.to_parquet(tmp_path / "set" / "train-00000-of-00001.parquet")
    return str(tmp_path / "set")


def read(name: str, **options: Any) -> list[Any]:
    return list(read_hub_records(name, max_tasks=None, **options))


def test_rows_are_read_like_lines(tmp_path: Path) -> None:
    documents = [Document("text_00000000", "one"), Document("text_00000001", "two")]
    name = folder(tmp_path, [{"text": "one", "label": 1}, {"text": "two", "label": 2}])
    assert read(name) == read(name, column="text") == documents


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("record", [_TASK, _EXAMPLES, _PAIRS])
def test_a_column_may_hold_any_shape_of_a_task(tmp_path: Path, record: Any, as_json: bool) -> None:
    value = json.dumps(record) if as_json else record
    assert read(folder(tmp_path, [{"uid": "a", "what": value, "text": "x"}]), column="what") == [TASK]


def test_a_text_that_looks_like_json_but_is_no_task_stays_a_text(tmp_path: Path) -> None:
    name = folder(tmp_path, [{"body": text} for text in ('{"a": 1}', "[1, 2]", "{ broken")])
    assert [record.text for record in read(name, column="body")] == ['{"a": 1}', "[1, 2]", "{ broken"]


def test_objects_of_lists_are_lists_of_objects(tmp_path: Path) -> None:
    """Older datasets use `Sequence({...})` for pairs, which returns them in this form."""
    grid = datasets.Sequence(datasets.Sequence(datasets.Value("int8")))
    pairs = datasets.Sequence({"input": grid, "output": grid})
    features = datasets.Features({"id": datasets.Value("string"), "train": pairs, "test": pairs})
    assert read(folder(tmp_path, [{"id": "a", **_TASK}], features)) == [TASK]


def test_tests_without_answers(tmp_path: Path) -> None:
    rows = [{"id": "a", "train": _PAIRS[:2], "test": [{"input": [[5]], "output": None}]}]
    grid = [[datasets.Value("int64")]]
    pairs = [{"input": grid, "output": grid}]
    name = folder(tmp_path, rows, datasets.Features({"id": datasets.Value("string"), "train": pairs, "test": pairs}))
    assert read(name)[0].test == (Pair(((5,),), None),)


def test_what_save_to_disk_wrote_has_no_splits_or_configurations_but_its_own(tmp_path: Path) -> None:
    whole, split = str(tmp_path / "whole"), str(tmp_path / "split")
    made = datasets.Dataset.from_list([{"text": "x"}])
    made.save_to_disk(whole)
    datasets.DatasetDict({"validation": made}).save_to_disk(split)
    assert read(whole) == read(split, split="validation") == [Document("text_00000000", "x")]
    with pytest.raises(DatasetError, match="split split train: cannot be read"):
        read(split)
    with pytest.raises(DatasetError, match="split test: was saved as one dataset without splits"):
        read(whole, split="test")
    with pytest.raises(DatasetError, match="has no configurations; leave out --dataset_config"):
        read(whole, config="small")


def test_real_tasks_come_out_as_from_a_file(tmp_path: Path) -> None:
    write_tasks(tmp_path / "tasks.jsonl", make_tasks(30, seed=5))
    lines = (tmp_path / "tasks.jsonl").read_text().splitlines()
    name = folder(tmp_path, [json.loads(line) for line in lines])
    assert read(name) == list(read_records(str(tmp_path / "tasks.jsonl")))


def test_bad_rows_are_named(tmp_path: Path) -> None:
    name = folder(tmp_path, [{"id": "a", "text": "x"}, {"id": "a", "text": "y"}, {"id": "b", "text": None}])
    first, repeated, missing = read(name, column="text")
    assert first == Document("a", "x")
    assert isinstance(repeated, BadTask)
    assert (repeated.where, repeated.task_id) == (f"{name} split train row 2", "a")
    assert isinstance(missing, BadTask)
    assert "column 'text' is null" in missing.reason


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    name = folder(tmp_path, [{"text": "x", "label": 1}])
    with pytest.raises(UsageError, match=r"--column_name examples: .* has the columns text, label"):
        read(name, column="examples")


def test_a_dataset_without_a_known_column_says_which_it_has(tmp_path: Path) -> None:
    name = folder(tmp_path, [{"id": 1, "content": "x"}])
    with pytest.raises(
        DatasetError, match=r"set split train: has the columns id, content, and none of .*--column_name"
    ):
        read(name)
    assert read(name, column="content") == [Document("1", "x")]


def test_conversations_and_tokens_of_a_table_are_those_of_lines(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    chat = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    rows = [{"id": "a", "messages": chat, "input_ids": None}, {"id": "b", "messages": None, "input_ids": [1, 2]}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    records = read(folder(tmp_path, rows))
    assert records == list(read_records(str(tmp_path / "rows.jsonl")))
    assert records == [Conversation("a", tuple(chat)), TokenList("b", (1, 2))]


def test_a_dataset_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DatasetError, match=r"nobody/nothing split train: cannot be read"):
        read("nobody/nothing")


@pytest.mark.whole
def test_a_run_takes_a_dataset_by_name_and_writes_what_it_would_of_the_same_lines(
    tmp_path: Path, tiny_model: Path, few_tasks: Path
) -> None:
    name = folder(tmp_path, [{"what": line, "text": "no"} for line in few_tasks.read_text().splitlines()])
    by_path = changed(small_run(few_tasks, tiny_model, tmp_path / "path"), layers_to_extract=(1,))
    by_name = changed(
        small_run(few_tasks, tiny_model, tmp_path / "name"),
        layers_to_extract=(1,),
        dataset_path=None,
        dataset_name=name,
        column_name="what",
    )
    written = [extract(config).manifest for config in (by_path, by_name)]
    assert written[0].shards == written[1].shards


@pytest.mark.whole
def test_a_run_by_name_goes_on_where_it_was_stopped(tmp_path: Path, tiny_model: Path) -> None:
    name = folder(tmp_path, [{"text": f"Text number {number}."} for number in range(40)])
    config = changed(
        small_run(tmp_path, tiny_model, tmp_path), dataset_path=None, dataset_name=name, shard_size_gb=1e-5
    )
    begun = extract_some(config, 2)
    (tmp_path / "other").mkdir()
    other = folder(tmp_path / "other", [{"text": f"Another text {number}."} for number in range(40)])
    with pytest.raises(RunMismatchError, match="are not those that were extracted here"):
        extract(changed(config, dataset_name=other))
    whole = extract(config).manifest
    assert (whole.samples, len(begun["shards"])) == (40, 2)
    assert (
        whole.shards
        == extract(changed(config, output_dir=str(tmp_path / "again"), checkpointing=False)).manifest.shards
    )


def test_a_run_says_how_to_get_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r"--dataset_name needs the datasets library: .* -m pip install .*datasets"):
        next(open_records(ExtractConfig(dataset_name="nobody/nothing")))


def test_parquet_is_read_without_the_librarys_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's own reader reads ahead, so its memory grows with the file."""
    for part in range(2):
        rows = [{"id": f"{part}-{row}", "text": f"text {part} {row}"} for row in range(3)]
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / f"train-0000{part}-of-00002.parquet")
    monkeypatch.setattr(datasets, "load_dataset", None)
    found = [record.task_id for record in read_hub_records(str(tmp_path), max_tasks=None)]
    assert found == ["0-0", "0-1", "0-2", "1-0", "1-1", "1-2"]
