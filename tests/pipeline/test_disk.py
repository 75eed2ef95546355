"""Full or read-only disks: one message, nothing is lost, and the same command continues."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import commands
import pytest
import shards
from runs import changed, finished, out

from layertap.config.extract import ExtractConfig
from layertap.errors import StorageError, UsageError
from layertap.pipeline.run import extract

LIMITED = """
import resource, runpy, sys
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def mount(*arguments: str | Path) -> bool:
    return subprocess.run(["mount", *map(str, arguments)], capture_output=True, check=False).returncode == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not mount("-t", "tmpfs", "-o", "size=256k", "tmpfs", folder):
        pytest.skip("needs the right to mount a small file system; the test with RLIMIT_FSIZE runs without")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.whole
def test_a_full_disk_stops_the_run_and_room_lets_it_go_on(config: ExtractConfig, disk: Path) -> None:
    finished(config)
    small = changed(config, output_dir=str(disk / "out"), checkpoint_dir=str(disk / "checkpoints"))
    with pytest.raises(StorageError, match=r"No space left on device\. What was committed before is safe; make room"):
        extract(small)
    committed = {name for name in shards.contents(out(small)) if name.startswith("shard")}
    assert not [name for name in shards.contents(out(small)) if name.endswith(".partial")]
    assert mount("-o", "remount,size=64m", disk)
    summary = extract(small)
    assert summary.resumed_shards >= len(committed) - 1
    for name, data in shards.contents(out(config)).items():
        assert name == "metadata.json" or shards.contents(out(small))[name] == data


def test_a_disk_that_must_not_be_written_to_is_named(config: ExtractConfig, disk: Path) -> None:
    assert mount("-o", "remount,ro", disk)
    with pytest.raises(UsageError, match=f"--output_dir {disk / 'out'}: {disk} cannot be written to"):
        extract(changed(config, output_dir=str(disk / "out")))


@pytest.mark.slow
def test_a_write_that_the_system_refuses_stops_the_command_with_status_1(config: ExtractConfig, tmp_path: Path) -> None:
    settings = ("dataset_path", "model_path", "predictions_per_task", "row_length", "shard_size_gb")
    flags = [part for name in settings for part in (f"--{name}", str(getattr(config, name)))]
    script = commands.ROOT / "extract_activations.py"
    limited = commands.run(["-c", LIMITED, "200000", script, *flags], tmp_path)
    assert limited.returncode == 1, limited.stderr
    assert "cannot be written: File too large" in limited.stderr
    assert "Traceback" not in limited.stderr
    again = commands.run([script, *flags], tmp_path)
    assert again.returncode == 0, again.stderr
    verified = commands.run(["-m", "layertap", "verify", "activations"], tmp_path)
    assert verified.returncode == 0, verified.stdout
