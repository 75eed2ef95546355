"""What an export refuses, finds or says, and in which words."""

from pathlib import Path

import exports
import numpy as np
import outputs
import pytest

from layertap.core.taps import Tap
from layertap.objects import open_store
from layertap.shards.manifest_files import write_manifest


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three shards in float32, with two layers and one site."""
    outputs.write(tmp_path / "run", outputs.three_shards(), outputs.shard_format(name="safetensors"))
    return tmp_path / "run"


def large(tmp_path: Path, value: float) -> Path:
    """A run with this value at one token of layer 2."""
    contents = outputs.three_shards()
    contents[1][0].activations[Tap(2, "residual")][1, 0] = value
    outputs.write(tmp_path / "large", contents, outputs.shard_format(name="safetensors"))
    return tmp_path / "large"


@pytest.mark.parametrize("form", exports.FORMS)
def test_a_source_that_is_not_there(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = exports.refused(capsys, tmp_path / "absent", tmp_path / "out", "--to", form)
    assert "absent: has no metadata.json there or below, so it is not the output of a run" in said
    assert not (tmp_path / "out").exists()


def test_a_run_without_a_shard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_manifest(open_store(str(tmp_path / "run")), outputs.manifest(outputs.shard_format()))
    said = exports.refused(capsys, tmp_path / "run", tmp_path / "out", "--to", "hf")
    assert "has no shard yet, so there is nothing to export" in said
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_else(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    said = exports.refused(capsys, run, tmp_path / "out", "--to", "hf")
    assert "is not an export, and holds notes.txt; give a new folder to export to" in said
    assert "is not an export, and holds" in exports.refused(capsys, run, run, "--to", "hf")
    assert "is a file" in exports.refused(capsys, run, tmp_path / "out" / "notes.txt", "--to", "hf")


def test_a_folder_with_another_export(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exports.told(capsys, run, tmp_path / "out", "--to", "saelens", "--context_size", "2")
    before = exports.contents(tmp_path / "out")
    said = exports.refused(capsys, run, tmp_path / "out", "--to", "saelens", "--context_size", "3")
    assert "context_size: 2 there, 3 now" in said
    said = exports.refused(capsys, run, tmp_path / "out", "--to", "saelens", "--context_size", "2", "--layers", "2")
    assert "taps.blocks.0.hook_resid_post" in said
    other = [[outputs.sample(index, 4)] for index in range(2)]
    outputs.write(tmp_path / "other", other, outputs.shard_format(name="safetensors"))
    said = exports.refused(capsys, tmp_path / "other", tmp_path / "out", "--to", "saelens", "--context_size", "2")
    assert f"the source: {run} there, {tmp_path / 'other'} now, or it has grown since" in said
    assert exports.contents(tmp_path / "out") == before


def test_the_same_run_elsewhere_goes_on(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exports.told(capsys, run, tmp_path / "out", "--to", "memmap")
    run.rename(tmp_path / "moved")
    assert "equal" in exports.told(capsys, tmp_path / "moved", tmp_path / "out", "--to", "memmap")


def test_layers_and_sites_that_are_not_there(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags in (("--layers", "1"), ("--sites", "mlp")):
        said = exports.refused(capsys, run, tmp_path / "out", "--to", "hf", *flags)
        assert "holds layers 0, 2 at residual, not layer" in said


@pytest.mark.parametrize("form", ["saelens", "hf"])
def test_bfloat16_where_arrow_has_none(
    form: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = exports.refused(capsys, run, tmp_path / "out", "--to", form, "--dtype", "bfloat16")
    assert f"--to {form} has no bfloat16, because Arrow has none; give --dtype float32, or --to memmap" in said


def test_contexts_are_of_saelens_alone(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = exports.refused(capsys, run, tmp_path / "out", "--to", "hf", "--context_size", "5")
    assert "--context_size works only with --to saelens" in said


@pytest.mark.parametrize("form", exports.FORMS)
def test_no_token_is_wanted(form: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--to", form, "--include", "cells")
    said = exports.refused(capsys, run, tmp_path / "out", *flags)
    assert "want" in said
    assert not (tmp_path / "out" / "state.json").exists()


def test_a_value_that_float16_cannot_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = large(tmp_path, 1e5)
    said = exports.refused(capsys, run, tmp_path / "out", "--to", "hf", "--dtype", "float16")
    assert "layer 2, residual: has a value of 100000, beyond what float16 holds (65504)" in said
    assert "--dtype float32" in said
    assert not (tmp_path / "out" / "state.json").exists(), "nobody takes a part of it for a dataset"


def test_what_float16_costs_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = large(tmp_path, 1.0 + 2**-11 + 2**-20)  # rounds up to 1 + 2**-10
    said = exports.told(capsys, run, tmp_path / "out", "--to", "memmap", "--dtype", "float16")
    stored = np.concatenate([exports.values(run, Tap(layer, "residual")) for layer in (0, 2)])
    errors = np.linalg.norm(stored.astype(np.float16).astype(np.float64) - stored, axis=1) / np.linalg.norm(
        stored, axis=1
    )
    assert (
        f"float32 written as float16; the worst error of a token is {errors.max():.1e} of its norm, at layer_" in said
    )


def test_infinities_that_were_kept_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    contents = outputs.three_shards()
    contents[0][0].activations[Tap(0, "residual")][1] = np.nan
    contents[0][0].activations[Tap(0, "residual")][2, 0] = -np.inf
    outputs.write(tmp_path / "run", contents, outputs.shard_format(name="safetensors", keep_nonfinite=True))
    said = exports.told(capsys, tmp_path / "run", tmp_path / "out", "--to", "saelens", "--context_size", "1")
    assert "2 activations of the run are not finite" in said
    assert "23 contexts" in said
    flags = ("--to", "saelens", "--context_size", "1", "--exclude", "nonfinite")
    assert "21 contexts" in exports.told(capsys, tmp_path / "run", tmp_path / "finite", *flags)


def test_damage_is_found_by_the_check(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exports.told(capsys, run, tmp_path / "out", "--to", "memmap")
    path = tmp_path / "out" / "layer_2_out" / "shard_1.memmap"
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.write_bytes(content)
    said = exports.refused(capsys, run, tmp_path / "out", "--to", "memmap", status=1)
    assert f"{path}, shard 2: layer_2_out is not what was written; delete that file and run" in said
    assert "not read back" in exports.told(capsys, run, tmp_path / "out", "--to", "memmap", "--no_check")
    path.unlink()
    assert "equal" in exports.told(capsys, run, tmp_path / "out", "--to", "memmap")


def test_an_unfinished_run_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs.write(tmp_path / "run", outputs.three_shards(), outputs.shard_format(name="safetensors"))
    outputs.edit_manifest(tmp_path / "run", lambda document: document.update(complete=False))
    assert "the run is not complete" in exports.told(capsys, tmp_path / "run", tmp_path / "out", "--to", "hf")
