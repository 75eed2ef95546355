"""The command line as a user sees it: flags, help, messages, exit statuses."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import commands
import pytest

import layertap
from layertap.cli import main


def extract(*flags: str | Path) -> int:
    return main(["extract", *map(str, flags)])


def test_the_worker_id_comes_from_the_environment(
    tiny_model: Path, demo_tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TPU_WORKER_ID", "7")
    monkeypatch.chdir(tmp_path)
    flags = ("--max_tasks", "1", "--predictions_per_task", "1", "--layers_to_extract", "0")
    assert extract("--dataset_path", demo_tasks, "--model_path", tiny_model, *flags) == 0
    assert (tmp_path / "checkpoints" / "checkpoint_worker_7.json").exists()
    assert json.loads((tmp_path / "activations" / "metadata.json").read_text())["worker_id"] == 7


def test_usage_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "extract" in capsys.readouterr().out
    assert main([]) == 2
    assert main(["help"]) == 0
    assert "extract" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["extrakt"], "error: layertap has no command 'extrakt'; did you mean extract?\n"),
        (["xyz"], "error: layertap has no command 'xyz'\n"),
        (["tpu", "stat"], "error: layertap tpu has no command 'stat'; did you mean status?\n"),
    ],
)
def test_an_unknown_command_is_answered_with_the_nearest(
    typed: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(typed) == 2
    assert capsys.readouterr().err.startswith(said)


def test_the_version_is_printed(tmp_path: Path) -> None:
    done = commands.run(["-m", "layertap", "--version"], tmp_path)
    assert (done.returncode, done.stdout) == (0, f"layertap {layertap.__version__}\n")


@pytest.fixture
def refused(
    tiny_model: Path,
    demo_tasks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[[Mapping[str, object]], str]:
    """Extract with these flags, which must be refused and leave nothing behind, and return the
    message.
    """
    monkeypatch.chdir(tmp_path)  # so that the default --checkpoint_dir is here, too

    def run(flags: Mapping[str, object]) -> str:
        usual = {"dataset_path": demo_tasks, "model_path": tiny_model, "output_dir": tmp_path / "out"}
        words = [str(word) for name, value in {**usual, **flags}.items() for word in (f"--{name}", value)]
        before = set(tmp_path.rglob("*"))
        assert main(["extract", *words]) == 2
        errors = capsys.readouterr().err
        assert "\nerror: " in f"\n{errors}"
        assert "Traceback" not in errors
        assert set(tmp_path.rglob("*")) == before
        return errors

    return run


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"machine_id": 2, "total_machines": 2}, "--machine_id 2 is not one of 2 machines (0 to 1)"),
        ({"batch_size": 0}, "--batch_size must be at least 1, not 0"),
        ({"row_length": 1000}, "--row_length 1000 must be a multiple of 256"),
        ({"shard_size_gb": 0}, "--shard_size_gb must be positive"),
        ({"max_tasks": 0}, "--max_tasks must be at least 1"),
        ({"worker_id": -1}, "--worker_id must not be negative"),
        ({"shard_size_gb": "inf"}, "--shard_size_gb must be positive"),
        ({"checkpoint_dir": "gs://bucket/a"}, "gs://bucket/a: is a URL"),
        ({"checkpoint_dir": "~nobody-here/a"}, "~nobody-here"),
        ({"checkpoint_dir": "/dev/null/a"}, "--checkpoint_dir"),
        ({"output_dir": "/dev/null/a"}, "/dev/null/a"),
        ({"layers_to_extract": 9}, "has layers 0 to 3"),
        ({"grid_encoder": "MinimalGridEncoder(__import__('os'))"}, "grid encoder"),
        ({"grid_encoder": "MinimalGridEncodr()"}, "MinimalGridEncoder"),
        ({"prompt_version": "v9"}, "v9"),
        ({"prompt_template": "/nowhere"}, "/nowhere"),
        ({"dataset_path": "/nowhere.jsonl"}, "/nowhere.jsonl"),
        ({"model_path": "/nowhere"}, "neither a folder nor a Hub id"),
    ],
)
def test_what_cannot_work_is_refused(
    refused: Callable[[Mapping[str, object]], str], flags: Mapping[str, object], message: str
) -> None:
    assert message in refused(flags)


_TASK = {"task_id": "t1", "train": [{"input": [[1]], "output": [[2]]}], "test": [{"input": [[3]], "output": [[4]]}]}
_GOOD = json.dumps({**_TASK, "task_id": "good"})
_RAGGED = json.dumps({**_TASK, "train": [{"input": [[1, 2], [3]], "output": [[1]]}]})
BAD_LINES = {
    "malformed JSON": ('{"task_id": "t1", "train": [', ["line 2", "JSON"]),
    "ragged grid": (_RAGGED, ["line 2", "t1", "row"]),
    "duplicate id": (_GOOD, ["line 2", "good", "same id"]),
}


@pytest.mark.whole
@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_bad_task_is_named_or_skipped(
    kind: str, refused: Callable[[Mapping[str, object]], str], tiny_model: Path, tmp_path: Path
) -> None:
    line, named = BAD_LINES[kind]
    path, out = tmp_path / "tasks.jsonl", tmp_path / "out"
    path.write_text(f"{_GOOD}\n{line}\n")
    errors = refused({"dataset_path": path})
    assert all(part in errors for part in ["tasks.jsonl", *named]), errors
    skipping = ("--on_bad_task", "skip", "--checkpoint_dir", tmp_path / "ck")
    assert extract("--dataset_path", path, "--model_path", tiny_model, "--output_dir", out, *skipping) == 0
    assert json.loads((out / "metadata.json").read_text())["progress"]["skipped_tasks"]["count"] == 1


def test_a_run_whose_tasks_were_all_left_out_is_no_success(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "tasks.jsonl", tmp_path / "out"
    path.write_text(f"{_RAGGED}\n{_RAGGED}\n")
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


@pytest.mark.whole
def test_the_demo_runs_and_verifies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--output_dir", str(tmp_path / "demo"), "--num_tasks", "3"]) == 0
    text = capsys.readouterr().out
    assert "every file read back and checked" in text
    assert {path.name for path in (tmp_path / "demo" / "activations").iterdir()} >= {"residual", "mlp", "attn"}
    assert main(["demo", "--output_dir", str(tmp_path / "demo")]) == 2


def test_commands_that_need_no_model_start_without_jax(tmp_path: Path) -> None:
    program = "import sys; from layertap.cli import main; main(sys.argv[1:]); sys.exit('jax' in sys.modules)"
    assert commands.run(["-c", program, "verify", tmp_path], tmp_path).returncode == 0
