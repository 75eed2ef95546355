"""Which files of a folder are read and in which order, and the message about the others."""

import gzip
import json
import os
from pathlib import Path

import pytest

from layertap.config.fleet import StreamsConfig
from layertap.core.records import BadTask, Document
from layertap.dataset import opening_lines, read_records
from layertap.errors import DatasetError
from layertap.fleet.streams import create_streams

_TASK = {"train": [{"input": [[1]], "output": [[2]]}], "test": [{"input": [[3]]}]}


def fill(folder: Path, *names: str) -> Path:
    """Write files with these names, each with one task or a text, packed if the name says so."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = b"a text" if ".txt" in name.lower() else json.dumps(_TASK | {"task_id": name}).encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return folder


def read(path: Path | str, **options: str) -> list[str | None]:
    return [record.task_id for record in read_records(str(path), **options)]  # type: ignore[arg-type]


def said(path: Path | str, **options: str) -> list[str]:
    config = StreamsConfig(dataset_path=str(path), num_streams=1, **options)  # type: ignore[arg-type]
    return [line.removeprefix(f"{path}: ") for line in opening_lines(config)]


def test_every_file_of_data_is_read_at_any_depth_by_path(tmp_path: Path) -> None:
    names = ["E.JSON", "a.json", "b.jsonl", "c.json.gz", "more/d.ndjson", "more/deeper/e.JSONL.gz"]
    assert read(fill(tmp_path, *reversed(names))) == names
    assert said(tmp_path) == []


def test_companions_and_other_files_are_left_out_and_named(tmp_path: Path) -> None:
    fill(tmp_path, "data/a.jsonl", "data/b.jsonl", "data/dataset_info.json", "data/README.txt", "data/more/x.csv")
    fill(tmp_path, "data/.hidden/c.json", "data/__MACOSX/._a.json", "data/_SUCCESS", "data/LICENSE", "data/state.json")
    assert read(tmp_path / "data") == ["data/a.jsonl", "data/b.jsonl"]
    assert said(tmp_path / "data") == [
        "reads 2 files, and leaves out 6: LICENSE, README.txt, _SUCCESS, dataset_info.json, more/x.csv, ..."
    ]


def test_a_command_says_so_before_it_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = fill(tmp_path / "data", "a.json", "notes.md")
    create_streams(StreamsConfig(dataset_path=str(data), num_streams=1, output_dir=str(tmp_path / "out")))
    assert capsys.readouterr().err == f"{data}: reads 1 file, and leaves out 1: notes.md\n"


def test_lists_of_ids_beside_tasks_are_no_data(tmp_path: Path) -> None:
    """ARC-AGI-2's layout, and ConceptARC's."""
    fill(tmp_path, "data/training/a.json", "data/evaluation/b.json", "data/training.txt", "data/evaluation.txt")
    assert read(tmp_path / "data") == ["data/evaluation/b.json", "data/training/a.json"]
    assert said(tmp_path / "data") == ["reads 2 files, and leaves out 2: evaluation.txt, training.txt"]
    fill(tmp_path, "corpus/Above/Above1.json", "corpus/Below/Below1.json")
    assert read(tmp_path / "corpus") == ["corpus/Above/Above1.json", "corpus/Below/Below1.json"]


def test_texts_are_read_where_there_is_nothing_else_and_named_by_their_path(tmp_path: Path) -> None:
    fill(tmp_path, "a.txt", "more/a.txt", "more/b.TXT.gz", "README.txt")
    assert list(read_records(str(tmp_path))) == [Document(name, "a text") for name in ("a", "more/a", "more/b")]
    assert said(tmp_path) == [
        "reads 3 files, and leaves out 1: README.txt",
        "each .txt file is one document; --dataset_format txt_lines makes one of each line",
    ]
    assert said(tmp_path / "a.txt") == said(tmp_path)[1:]
    assert said(tmp_path, dataset_format="txt_lines") == said(tmp_path)[:1]
    fill(tmp_path, "rows.jsonl")
    assert read(tmp_path) == ["rows.jsonl"]
    assert read(tmp_path, dataset_format="txt") == ["a", "more/a", "more/b"]
    assert read(tmp_path, dataset_format="txt_lines") == [f"text_{number:08d}" for number in range(3)]


def test_a_pattern_is_what_it_matches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "s/a.json", "s/b.json", "s/c.jsonl", "s/d.txt", "t/e.json", "t/f.json")
    assert read(tmp_path / "s" / "*.json") == ["s/a.json", "s/b.json"]
    assert read(tmp_path / "*") == ["s/a.json", "s/b.json", "s/c.jsonl", "t/e.json", "t/f.json"]
    assert read(tmp_path / "s" / "[a-b]*") == read(tmp_path / "s" / "?.json") == ["s/a.json", "s/b.json"]
    assert read(tmp_path / "s" / "*.txt") == ["d"]
    assert read(tmp_path / "**" / "e*") == ["t/e.json"]
    assert said(tmp_path / "s" / "*") == ["reads 3 files, and leaves out 1: d.txt"]
    monkeypatch.chdir(tmp_path)
    assert next(read_records("s/*.jsonl")).task_id == "s/c.jsonl"
    (tmp_path / "s" / "x.jsonl").write_text("broken\n")
    (bad,) = read_records("s/x*.jsonl")
    assert isinstance(bad, BadTask)
    assert bad.where == "s/x.jsonl line 1"


def test_a_file_may_be_called_like_a_pattern(tmp_path: Path) -> None:
    assert read(fill(tmp_path, "[a].json", "a.json") / "[a].json") == ["[a].json"]


def test_a_link_to_a_file_is_read_and_a_link_to_a_folder_named(tmp_path: Path) -> None:
    fill(tmp_path, "data/a.json", "far/b.json")
    os.symlink(tmp_path / "far" / "b.json", tmp_path / "data" / "c.json")
    os.symlink(tmp_path / "far", tmp_path / "data" / "far")
    assert read(tmp_path / "data") == ["data/a.json", "far/b.json"]
    assert said(tmp_path / "data") == ["reads 2 files, and leaves out 1: far"]


@pytest.mark.parametrize(
    ("names", "path", "complaint"),
    [
        (
            ["a.csv", "b/LICENSE"],
            ".",
            r"the folder has no data files .*; it holds a\.csv, b/LICENSE; give one",
        ),
        ([".a.json"], ".", r"the folder has no data files .*; it holds \.a\.json"),
        (["dataset_info.json", "data-00000-of-00001.arrow"], ".", "give it as --dataset_name"),
        (["a.csv"], "*.csv", r"the pattern matches no data files .*; it matches a\.csv"),
        (["a.json"], "*.jsonl", "it matches no file"),
    ],
)
def test_what_has_no_data_says_what_it_has(tmp_path: Path, names: list[str], path: str, complaint: str) -> None:
    with pytest.raises(DatasetError, match=complaint):
        read(fill(tmp_path, *names) / path)
    with pytest.raises(DatasetError, match=complaint):
        said(tmp_path / path)
