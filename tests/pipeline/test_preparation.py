"""What a run finds out before it fetches weights. The Hub is on loopback, and counts requests."""

import json
from collections.abc import Iterator
from pathlib import Path

import commands
import pytest
from fakes.gcs import FakeGcs
from fakes.hub import FakeHub

from layertap.errors import UsageError
from layertap.pipeline.setup import require_writable


@pytest.fixture
def hub(tiny_model: Path) -> Iterator[FakeHub]:
    with FakeHub() as hub:
        hub.publish("demo/tiny", tiny_model)
        yield hub


def refused(hub: FakeHub, folder: Path, **flags: str | Path) -> str:
    """Return what the run says. Its flags are those of a sound run, except these."""
    words = [f"--{name}={value}" for name, value in {"dataset_path": "no.jsonl", "output_dir": "out", **flags}.items()]
    done = commands.run(
        ["-m", "layertap", "extract", "--model_path", "demo/tiny", *words], folder, hub.environment(folder / "hub")
    )
    assert done.returncode == 2, done.stderr
    assert not [file for file in hub.downloads() if file.endswith(".safetensors")]
    assert not (folder / "out").exists()
    return done.stderr


@pytest.mark.whole
def test_a_dataset_that_is_not_there_costs_no_download(hub: FakeHub, tmp_path: Path) -> None:
    assert "no.jsonl: no such file or folder" in refused(hub, tmp_path)


@pytest.mark.whole
def test_neither_does_a_file_that_is_no_dataset(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text(json.dumps({"notes": 1}))
    assert "notes.json" in refused(hub, tmp_path, dataset_path="notes.json")


@pytest.mark.whole
def test_nor_an_output_folder_that_cannot_be_made(hub: FakeHub, demo_tasks: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = refused(hub, tmp_path, dataset_path=demo_tasks, output_dir="file/out")
    assert f"--output_dir file/out: {tmp_path}/file is a file" in said
    assert not hub.requests


@pytest.mark.whole
def test_nor_a_bucket_that_is_not_there(hub: FakeHub, gcs: FakeGcs, demo_tasks: Path, tmp_path: Path) -> None:
    said = refused(hub, tmp_path, dataset_path=demo_tasks, gcs_bucket="nowhere")
    assert "there is no such bucket" in said


def test_a_folder_is_not_made_to_find_out(tmp_path: Path) -> None:
    require_writable("output_dir", tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()


def test_a_folder_without_the_right_to_write_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, _mode: Path(path) != tmp_path)
    with pytest.raises(UsageError, match=f"--output_dir .*: {tmp_path} cannot be written to"):
        require_writable("output_dir", tmp_path / "out")
