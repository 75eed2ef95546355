"""A dataset as streams: complete or absent, each record once, prompts as without streams."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import commands
import pytest
import shards
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runs import changed, finished, out

from layertap.cli import main
from layertap.config.extract import ExtractConfig
from layertap.config.fleet import StreamsConfig
from layertap.dataset import read_records
from layertap.demo.tasks import make_tasks, write_tasks
from layertap.errors import BadTaskError, DamageError, LayertapError, RunMismatchError, UsageError
from layertap.fleet.streams import create_streams
from layertap.objects.files import file_crc32c
from layertap.pipeline.run import extract


@pytest.fixture
def streams(demo_tasks: Path, tmp_path: Path) -> StreamsConfig:
    return StreamsConfig(dataset_path=str(demo_tasks), num_streams=3, output_dir=str(tmp_path / "data" / "streams"))


def test_the_printed_command_makes_streams_and_a_manifest(demo_tasks: Path, tmp_path: Path) -> None:
    command = [commands.ROOT / "create_dataset_streams.py", "--dataset_path", demo_tasks]
    done = commands.run([*command, "--num_streams", "4", "--output_dir", "data/streams"], tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "data" / "streams"
    names = [f"stream_{number:03d}.jsonl" for number in range(4)]
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", *names]
    assert [path.name for path in folder.parent.iterdir()] == ["streams"]  # nothing is left beside it
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [stream["records"] for stream in manifest["streams"]] == [3, 3, 2, 2]
    for stream in manifest["streams"]:
        assert stream["bytes"] == (folder / stream["path"]).stat().st_size
        assert stream["crc32c"] == file_crc32c(folder / stream["path"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tasks=st.integers(1, 40), count=st.integers(1, 40), limit=st.none() | st.integers(1, 50))
def test_every_record_is_in_one_stream_in_order(
    tmp_path_factory: pytest.TempPathFactory, tasks: int, count: int, limit: int | None
) -> None:
    folder = tmp_path_factory.mktemp("deal")
    write_tasks(folder / "tasks.jsonl", make_tasks(tasks, seed=3))
    config = StreamsConfig(
        dataset_path=str(folder / "tasks.jsonl"), num_streams=count, max_samples=limit, output_dir=str(folder / "out")
    )
    wanted = list(read_records(str(folder / "tasks.jsonl"), max_tasks=limit))
    if len(wanted) < count:
        with pytest.raises(UsageError, match="give at most as many"):
            create_streams(config)
        assert not (folder / "out").exists()
        return
    create_streams(config)
    for number in range(count):
        assert list(read_records(str(folder / "out" / f"stream_{number:03d}.jsonl"))) == wanted[number::count]


def test_ids_from_numbers_go_with_the_record(tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": word}) + "\n" for word in "abcd"))
    create_streams(
        StreamsConfig(dataset_path=str(tmp_path / "texts.jsonl"), num_streams=2, output_dir=str(tmp_path / "out"))
    )
    ids = [record.task_id for record in read_records(str(tmp_path / "out" / "stream_001.jsonl"))]
    assert ids == ["text_00000001", "text_00000003"]


def test_a_repeated_id_is_refused_or_left_out(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"id": name, "text": name}) + "\n" for name in "abab"))
    config = StreamsConfig(dataset_path=str(path), num_streams=2, output_dir=str(tmp_path / "out"))
    with pytest.raises(BadTaskError, match=r"texts\.jsonl line 3, task 'a': an earlier record has the same id"):
        create_streams(config)
    assert not list(tmp_path.glob("*out*"))
    summary = create_streams(changed(config, on_bad_task="skip"))
    assert summary.skipped == 2
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [entry["task_id"] for entry in manifest["skipped"]["list"]] == ["a", "b"]
    assert create_streams(changed(config, on_bad_task="skip")).already_there


def test_again_changes_nothing_and_another_split_is_refused(streams: StreamsConfig) -> None:
    made = create_streams(streams)
    before = shards.contents(streams.output_folder)
    again = create_streams(streams)
    assert again.describe() == f"already there: {made.describe()}"
    for other, said in (
        ({"num_streams": 2}, "num_streams: 3 there, 2 now"),
        ({"max_samples": 6}, "records: 10 there, 6 now"),
        ({"name_digits": 1}, 'path: "stream_000.jsonl" there, "stream_0.jsonl" now'),
    ):
        with pytest.raises(RunMismatchError, match=rf"holds other streams \({said}\); give another --output_dir"):
            create_streams(changed(streams, **other))
    assert shards.contents(streams.output_folder) == before
    assert [path.name for path in streams.output_folder.parent.iterdir()] == ["streams"]


def test_other_records_of_the_same_size_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    config = StreamsConfig(dataset_path=str(path), num_streams=2, output_dir=str(tmp_path / "out"))
    for words in ("abcd", "abcx"):
        path.write_text("".join(json.dumps({"text": word}) + "\n" for word in words))
        if words == "abcd":
            create_streams(config)
    with pytest.raises(RunMismatchError, match=r'crc32c: "\w{8}" there, "\w{8}" now'):
        create_streams(config)


@pytest.mark.parametrize("damage", ["change", "remove"])
def test_streams_that_were_changed_are_named(streams: StreamsConfig, damage: str) -> None:
    create_streams(streams)
    path = streams.output_folder / "stream_001.jsonl"
    if damage == "change":
        path.write_bytes(path.read_bytes().replace(b"1", b"2", 1))
    else:
        path.unlink()
    with pytest.raises(DamageError, match=r"stream_001\.jsonl: is missing or was changed"):
        create_streams(streams)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("notes.txt", "mine", "holds files that are not streams"),
        ("manifest.json", "{", "is not a valid manifest of streams"),
        ("manifest.json", "null", "is not a valid manifest of streams"),
        ("manifest.json", '{"format_version": 1, "streams": 7}', "num_streams: null there, 3 now"),
    ],
)
def test_a_folder_with_other_files_is_left_alone(streams: StreamsConfig, name: str, text: str, said: str) -> None:
    streams.output_folder.mkdir(parents=True)
    (streams.output_folder / name).write_text(text)
    with pytest.raises(LayertapError, match=said):
        create_streams(streams)
    assert [path.read_text() for path in streams.output_folder.iterdir()] == [text]


def test_a_link_to_an_empty_folder_is_filled(streams: StreamsConfig, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    streams.output_folder.parent.mkdir()
    streams.output_folder.symlink_to(tmp_path / "disk")
    create_streams(streams)
    assert (tmp_path / "disk" / "manifest.json").exists()
    assert create_streams(streams).already_there
    assert streams.output_folder.is_symlink()


def test_a_hugging_face_dataset_is_dealt_out_by_a_column_to_files_with_short_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    pairs = [[[[1, 2]], [[2, 1]]], [[[3, 4]], [[4, 3]]]]
    rows = [{"seed": f"s{number}", "examples": pairs} for number in range(5)]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "set" / "train.parquet")
    flags = ["--dataset_name", tmp_path / "set", "--column_name", "examples", "--num_streams", 2, "--max_samples", 4]
    flags += ["--name_digits", 1]
    assert main(["streams", *map(str, flags), "--output_dir", str(tmp_path / "out")]) == 0
    found = list(read_records(str(tmp_path / "out" / "stream_1.jsonl")))
    assert [record.task_id for record in found] == ["task_00000001", "task_00000003"]
    assert found[0].test[0].input == ((3, 4),)


@pytest.mark.whole
def test_killed_while_writing_nothing_is_there_and_the_next_start_makes_it(tmp_path: Path) -> None:
    fifo = tmp_path / "tasks.jsonl"
    tasks = tmp_path / "tasks"
    write_tasks(tasks, make_tasks(8, seed=0))
    fifo.write_bytes(tasks.read_bytes() * 4000)  # large enough to be killed in the middle
    flags = ["--dataset_path", fifo, "--num_streams", "2", "--output_dir", "out", "--on_bad_task", "skip"]
    process = commands.start(["-m", "layertap", "streams", *flags], tmp_path)
    while not list(tmp_path.glob(".out*/stream_000*")) and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    fifo.write_bytes(tasks.read_bytes())
    done = commands.run(["-m", "layertap", "streams", *flags], tmp_path)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.whole
def test_memory_stays_bounded(tmp_path: Path) -> None:
    line = json.dumps({"text": "x" * 10_000}) + "\n"
    with (tmp_path / "texts.jsonl").open("w") as file:
        file.writelines(line for _ in range(20_000))  # 200 MB
    program = (  # not ru_maxrss, which begins with what the parent had
        "import re, sys; from layertap.cli import main; status = main(sys.argv[1:]);"
        r" print(re.search(r'VmHWM:\s+(\d+) kB', open('/proc/self/status').read())[1]); sys.exit(status)"
    )
    flags = ["--dataset_path", tmp_path / "texts.jsonl", "--num_streams", "8", "--output_dir", tmp_path / "out"]
    done = commands.run(["-c", program, "streams", *flags], tmp_path)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) * 1024 < 150e6


@pytest.mark.whole
def test_prompts_are_the_same_whichever_stream_they_are_in(config: ExtractConfig, tmp_path: Path) -> None:
    """The seed, the task's id and the prediction's number decide a prompt."""

    def prompts_of(run: ExtractConfig) -> dict[tuple[str, int, int], tuple[Any, ...]]:
        found = shards.samples(out(run), layer=1).values()
        key = lambda entry: (entry["task_id"], entry["origin"]["test_index"], entry["origin"]["prediction"])  # noqa: E731
        return {key(entry): (entry["token_ids"].tolist(), entry["origin"], entry["text_preview"]) for entry in found}

    folder = tmp_path / "streams"
    create_streams(StreamsConfig(dataset_path=config.dataset_path, num_streams=3, output_dir=str(folder)))
    together: dict[Any, Any] = {}
    for number in range(3):
        own = changed(
            config,
            dataset_path=str(folder / f"stream_{number:03d}.jsonl"),
            output_dir=str(tmp_path / f"out_{number}"),
            worker_id=number,
        )
        extract(own)
        together |= prompts_of(own)
    finished(config)
    assert together == prompts_of(config)
