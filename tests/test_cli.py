"""The command line as a user meets it: flags, help, messages, exit statuses."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import commands
import pytest
import shards

import layertap
from layertap.cli import main
from layertap.config.extract import ExtractConfig

_TASK = {"task_id": "t1", "train": [{"input": [[1]], "output": [[2]]}], "test": [{"input": [[3]], "output": [[4]]}]}


def extract(*flags: str | Path) -> int:
    return main(["extract", *map(str, flags)])


def test_the_entry_script_writes_what_plain_pickle_reads(tiny_model: Path, demo_tasks: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "stream_0.jsonl").write_bytes(demo_tasks.read_bytes())
    flags = (
        "--batch_size 4 --layers_to_extract 0 1 2 3 --activation_type residual --max_tasks 2 --predictions_per_task 1"
    )
    done = commands.run(
        [
            commands.ROOT / "extract_activations.py",
            *("--dataset_path", "data/stream_0.jsonl", "--model_path", tiny_model, *flags.split()),
        ],
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    shard = shards.read(tmp_path / "activations" / "shard_0001.pkl.gz")
    assert list(shard) == [0, 1, 2, 3]
    assert {"sample_idx", "activation", "shape", "text_preview"} <= shard[0][0].keys()
    assert (tmp_path / "checkpoints" / "checkpoint_worker_0.json").exists()
    assert "tokens/s" in done.stdout


def test_the_worker_id_comes_from_the_environment(
    tiny_model: Path, demo_tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TPU_WORKER_ID", "7")
    monkeypatch.chdir(tmp_path)
    flags = ("--max_tasks", "1", "--predictions_per_task", "1", "--layers_to_extract", "0")
    assert extract("--dataset_path", demo_tasks, "--model_path", tiny_model, *flags) == 0
    assert (tmp_path / "checkpoints" / "checkpoint_worker_7.json").exists()
    assert json.loads((tmp_path / "activations" / "metadata.json").read_text())["worker_id"] == 7


@pytest.mark.parametrize("spelling", ["--no_compress_shards", "--no-compress-shards"])
def test_underscores_and_hyphens_are_the_same(spelling: str) -> None:
    import tyro

    assert not tyro.cli(ExtractConfig, args=["--dataset_path", "x", spelling]).compress_shards


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        extract("--help")
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for name in flags_of(ExtractConfig):
        assert f"--{name} " in text or f"--{name}," in text or f"--{name}\n" in text, name


def flags_of(config: Any) -> list[str]:
    """The names of its fields, and in the place of groups those of theirs."""
    groups = {name: default for name, default in vars(config).items() if dataclasses.is_dataclass(default)}
    fields = config.__dataclass_fields__
    return [flag for name in fields for flag in (flags_of(type(groups[name])) if name in groups else [name])]


def test_usage_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "extract" in capsys.readouterr().out
    assert main([]) == 2
    assert main(["extrakt"]) == 2
    assert "no command 'extrakt'" in capsys.readouterr().err


def test_the_version_is_printed(tmp_path: Path) -> None:
    done = commands.run(["-m", "layertap", "--version"], tmp_path)
    assert (done.returncode, done.stdout) == (0, f"layertap {layertap.__version__}\n")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--machine_id", "2", "--total_machines", "2"], "--machine_id 2 is not one of 2 machines (0 to 1)"),
        (["--batch_size", "0"], "--batch_size must be at least 1, not 0"),
        (["--row_length", "1000"], "--row_length 1000 must be a multiple of 256"),
        (["--shard_size_gb", "0"], "--shard_size_gb must be positive"),
        (["--max_tasks", "0"], "--max_tasks must be at least 1"),
        (["--worker_id", "-1"], "--worker_id must not be negative"),
        (["--shard_size_gb", "inf"], "--shard_size_gb must be positive"),
        (["--checkpoint_dir", "gs://bucket/a"], "gs://bucket/a: is a URL"),
        (["--checkpoint_dir", "~nobody-here/a"], "~nobody-here"),
        (["--layers_to_extract", "9"], "has layers 0 to 3"),
        (["--grid_encoder", "MinimalGridEncoder(__import__('os'))"], "grid encoder"),
        (["--grid_encoder", "MinimalGridEncodr()"], "MinimalGridEncoder"),
        (["--prompt_version", "v9"], "v9"),
        (["--prompt_template", "/nowhere"], "/nowhere"),
    ],
)
def test_contradictory_flags_are_refused(
    tiny_model: Path,
    demo_tasks: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    status = extract("--dataset_path", demo_tasks, "--model_path", tiny_model, "--output_dir", tmp_path / "out", *flags)
    errors = capsys.readouterr().err
    assert status == 2
    assert message in errors
    assert "\nerror: " in f"\n{errors}"
    assert "Traceback" not in errors
    assert not shards.contents(tmp_path)


def _bad(**changes: object) -> str:
    return json.dumps({**_TASK, **changes})


_GOOD = json.dumps({**_TASK, "task_id": "good"})
_PAIR = _TASK["train"][0]
BAD_LINES = {
    "malformed JSON": ('{"task_id": "t1", "train": [', ["line 2", "JSON"]),
    "ragged grid": (_bad(train=[{"input": [[1, 2], [3]], "output": [[1]]}]), ["line 2", "t1", "row"]),
    "colour": (_bad(train=[{"input": [[10]], "output": [[1]]}]), ["line 2", "t1", "10"]),
    "too large": (_bad(train=[{"input": [[0] * 31], "output": [[1]]}]), ["line 2", "t1", "31", "30"]),
    "empty train": (_bad(train=[]), ["line 2", "t1", "train"]),
    "duplicate id": (_bad(task_id="good"), ["line 2", "good", "same id"]),
}


@pytest.mark.parametrize("kind", BAD_LINES)
def test_bad_input_is_named_and_nothing_is_written(
    kind: str, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line, named = BAD_LINES[kind]
    path = tmp_path / "tasks.jsonl"
    path.write_text(f"{_GOOD}\n{line}\n")
    out = tmp_path / "out"
    status = extract("--dataset_path", path, "--model_path", tiny_model, "--output_dir", out)
    errors = capsys.readouterr().err
    assert status == 2
    assert all(part in errors for part in ["tasks.jsonl", *named]), errors
    assert not shards.contents(out)
    skipping = ("--on_bad_task", "skip", "--checkpoint_dir", tmp_path / "ck")
    assert extract("--dataset_path", path, "--model_path", tiny_model, "--output_dir", out, *skipping) == 0
    assert json.loads((out / "metadata.json").read_text())["progress"]["skipped_tasks"]["count"] == 1


def test_a_run_whose_tasks_were_all_left_out_is_no_success(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "tasks.jsonl", tmp_path / "out"
    path.write_text(f"{BAD_LINES['ragged grid'][0]}\n{BAD_LINES['colour'][0]}\n")
    flags = ("--output_dir", out, "--checkpoint_dir", tmp_path / "ck", "--on_bad_task", "skip")
    for _ in range(2):  # and so it is when the complete, empty run is started again
        assert extract("--dataset_path", path, "--model_path", tiny_model, *flags) == 2
        assert "error: nothing was extracted: the run skipped 2 malformed tasks; " in capsys.readouterr().err
    assert main(["verify", str(out)]) == 0
    assert "EMPTY" in capsys.readouterr().out


def test_so_it_is_where_all_samples_were_too_long(
    tiny_model: Path, demo_tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--output_dir", tmp_path / "out", "--no_checkpointing", "--overlong", "skip", "--max_seq_length", "5")
    assert extract("--dataset_path", demo_tasks, "--model_path", tiny_model, *flags, "--max_tasks", "1") == 2
    assert "the run skipped 8 samples longer than --max_seq_length; " in capsys.readouterr().err


@pytest.mark.parametrize(("content", "message"), [("", "empty"), ("[1, 2, 3]", "tasks"), ("\x00\x01garbage", "JSON")])
def test_a_file_that_is_no_dataset_is_refused(
    content: str, message: str, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "data.json"
    path.write_text(content)
    assert extract("--dataset_path", path, "--model_path", tiny_model, "--output_dir", tmp_path / "out") == 2
    assert "data.json" in (errors := capsys.readouterr().err)
    assert message in errors


def test_a_missing_dataset_is_refused(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert extract("--dataset_path", tmp_path / "no.jsonl", "--model_path", tiny_model, "--output_dir", tmp_path) == 2
    assert "no.jsonl" in capsys.readouterr().err


def test_a_missing_model_is_refused(demo_tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert extract("--dataset_path", demo_tasks, "--model_path", tmp_path / "no", "--output_dir", tmp_path) == 2
    assert "neither a folder nor a Hub id" in capsys.readouterr().err


def test_output_that_cannot_be_written_is_an_error_of_its_own(
    demo_tasks: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert extract("--dataset_path", demo_tasks, "--model_path", tiny_model, "--output_dir", tmp_path / "file/out") == 2
    assert str(tmp_path / "file/out") in capsys.readouterr().err
    flags = ("--output_dir", tmp_path / "out", "--checkpoint_dir", tmp_path / "file/checkpoints")
    assert extract("--dataset_path", demo_tasks, "--model_path", tiny_model, *flags) == 2
    assert "--checkpoint_dir" in capsys.readouterr().err
    assert not shards.contents(tmp_path / "out")


def test_verify_finds_nothing_wrong_or_says_what(
    demo_tasks: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    flags = ("--max_tasks", "1", "--predictions_per_task", "1", "--checkpoint_dir", tmp_path / "ck")
    assert extract("--dataset_path", demo_tasks, "--model_path", tiny_model, "--output_dir", out, *flags) == 0
    assert main(["verify", str(out)]) == 0
    shard = out / "shard_0001.pkl.gz"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert main(["verify", str(out)]) == 1
    assert "shard_0001.pkl.gz" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "ck")]) == 2


def test_the_demo_runs_and_verifies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--output_dir", str(tmp_path / "demo"), "--num_tasks", "3"]) == 0
    text = capsys.readouterr().out
    assert "every file read back and checked" in text
    assert {path.name for path in (tmp_path / "demo" / "activations").iterdir()} >= {"residual", "mlp", "attn"}
    assert main(["demo", "--output_dir", str(tmp_path / "demo")]) == 2


def test_commands_that_need_no_model_start_without_jax(tmp_path: Path) -> None:
    program = "import sys; from layertap.cli import main; main(sys.argv[1:]); sys.exit('jax' in sys.modules)"
    assert commands.run(["-c", program, "verify", tmp_path], tmp_path).returncode == 0
    assert commands.run(["-c", program, "--help"], tmp_path).returncode == 0
