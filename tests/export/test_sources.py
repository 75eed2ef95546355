"""Sources of every kind: many workers, outputs of version 1, an unfinished run; and places that
cannot be written to.
"""

import os
import re
import shlex
import signal
import time
from pathlib import Path

import commands
import exports
import numpy as np
import outputs
import pytest

from layertap import ActivationDataset, ActivationStream
from layertap.config.arguments import parse
from layertap.config.export import ExportConfig
from layertap.core.taps import Tap
from layertap.export import for_saelens
from layertap.objects import open_store
from layertap.shards.form import ShardFormat
from layertap.shards.manifest_files import load_manifest
from layertap.shards.writer import ShardWriter

datasets = pytest.importorskip("datasets")
VERSION_1 = commands.ROOT / "tests" / "data" / "version_1"


@pytest.fixture(autouse=True)
def _quiet() -> None:
    datasets.disable_progress_bars()


@pytest.fixture
def workers(tmp_path: Path) -> Path:
    """Two workers with their own samples, in two formats and dtypes."""
    for number, (form, dtype) in enumerate((("pickle", "float32"), ("safetensors", "bfloat16"))):
        samples = [[outputs.sample(10 * number + index, 4)] for index in range(2)]
        outputs.write(tmp_path / "run" / f"tpu_{number}", samples, outputs.shard_format(dtype=dtype, name=form))
    return tmp_path / "run"


def test_many_workers_are_one_export(workers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = exports.told(capsys, workers, tmp_path / "rows", "--to", "hf")
    rows = datasets.load_from_disk(str(tmp_path / "rows")).with_format("numpy")
    assert list(rows["source"]) == ["tpu_0", "tpu_0", "tpu_1", "tpu_1"]
    assert list(rows["sample_idx"]) == [0, 1, 10, 11]
    for row, sample in zip(rows, ActivationDataset(workers), strict=True):
        assert np.array_equal(row["residual.2"], sample.activation(2).astype(np.float32))
    assert "bfloat16 written as float32, exactly" in said
    assert "float32, as stored" in said


@pytest.mark.parametrize("form", ["pickle", "safetensors"])
@pytest.mark.parametrize("to", exports.FORMS)
def test_outputs_of_version_1(form: str, to: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--to", to, *(["--context_size", "5"] if to == "saelens" else [])]
    said = exports.told(capsys, VERSION_1 / form, tmp_path / "out", *flags)
    assert "compared with the source: equal" in said
    if to == "hf":
        rows = datasets.load_from_disk(str(tmp_path / "out"))
        assert {"token_ids", "positions", "flags"} <= set(rows.column_names)
        assert "role" not in rows.column_names
        ids = np.concatenate([row["token_ids"] for row in rows])
        assert ids.tolist() == exports.column(VERSION_1 / form, "token_ids").tolist()


def test_a_run_that_has_grown_is_another_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    form = outputs.shard_format(name="safetensors")
    store = open_store(str(tmp_path / "run"))
    ShardWriter(store, outputs.manifest(form), form, lambda _: None).commit(
        [outputs.sample(0)], {"record": 1}, complete=False
    )
    said = exports.told(capsys, tmp_path / "run", tmp_path / "out", "--to", "memmap")
    assert "the run is not complete: only the shards committed so far are exported" in said
    manifest = load_manifest(store)
    assert manifest is not None
    ShardWriter(store, manifest, form, lambda _: None).commit([outputs.sample(1)], {"record": 2}, complete=True)
    said = exports.refused(capsys, tmp_path / "run", tmp_path / "out", "--to", "memmap")
    assert "or it has grown since" in said


@pytest.mark.whole
def test_an_adapter_takes_a_stream(tiny_model: Path, few_tasks: Path) -> None:
    settings = {"layers_to_extract": [2], "predictions_per_task": 1, "row_length": 1024, "batch_size": 2}
    stream = ActivationStream(dataset_path=str(few_tasks), model_path=str(tiny_model), **settings)
    batches = stream.batches(64, exclude={"first"}, dtype="float32")
    tensors = for_saelens(batches, epochs=1)
    expected = stream.batches(64, exclude={"first"}, dtype="float32")
    for number, (tensor, batch) in enumerate(zip(tensors, expected, strict=True)):
        assert np.array_equal(tensor.numpy(), batch.activations[:, 0]), number
    stream.close()


LIMITED = """
import resource, sys
from layertap.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.whole
@pytest.mark.parametrize("form", exports.FORMS)
def test_a_disk_that_takes_no_more(form: str, tmp_path: Path) -> None:
    widths = {Tap(0, "residual"): 256}
    layout = ShardFormat(widths, np.dtype(np.float32), False, "safetensors", False)
    outputs.write(tmp_path / "run", [[outputs.sample(0, 200, widths=widths)]], layout)
    arguments = ["export", str(tmp_path / "run"), str(tmp_path / "out"), "--to", form]
    done = commands.run(["-c", LIMITED, *arguments], tmp_path)
    assert done.returncode == 1
    assert re.search(
        r"error: .*out/.*: cannot be written: File too large. What was committed before is safe", done.stderr
    )
    assert "Traceback" not in done.stderr
    assert commands.run(["-m", "layertap", *arguments], tmp_path).returncode == 0
    assert not list((tmp_path / "out").rglob("*.partial"))


@pytest.mark.whole
def test_an_interruption_says_that_it_goes_on(tmp_path: Path) -> None:
    widths = {Tap(0, "residual"): 64}
    layout = ShardFormat(widths, np.dtype(np.float32), False, "safetensors", False)
    outputs.write(tmp_path / "run", [[outputs.sample(index, 400, widths=widths)] for index in range(60)], layout)
    arguments = ["-m", "layertap", "export", str(tmp_path / "run"), str(tmp_path / "out"), "--to", "memmap"]
    process = commands.start(arguments, tmp_path)
    while process.poll() is None and not (tmp_path / "out" / "layertap_export").exists():
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, output + errors
    assert "the shards written so far are safe; run the same command to resume" in errors
    assert not list((tmp_path / "out").rglob("*.partial"))
    assert commands.run(arguments, tmp_path).returncode == 0


def test_the_commands_of_the_page_are_commands() -> None:
    page = (commands.ROOT / "docs/export.md").read_text()
    found = re.findall(r"^    layertap export (.*)$", page, re.MULTILINE)
    assert len(found) == 3
    for words in found:
        config = parse(ExportConfig, shlex.split(words), prog="layertap export")
        assert config.to in exports.FORMS
