"""Each format returns what was written, to the last bit."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import commands
import exports
import ml_dtypes
import numpy as np
import outputs
import pytest

from layertap import ActivationDataset
from layertap.core.hooks import hook_name
from layertap.core.taps import SITES, Tap

datasets = pytest.importorskip("datasets")
TAPS = [Tap(layer, site) for site in ("residual", "mlp_in") for layer in (0, 2)]
TOKENS = 23


@pytest.fixture(autouse=True)
def _quiet() -> None:
    datasets.disable_progress_bars()


def test_saelens_has_contexts_of_one_length(
    run: Path, publish: Callable[[Path], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = exports.told(capsys, publish(run), tmp_path / "out", "--to", "saelens", "--context_size", "3")
    found = datasets.load_from_disk(str(tmp_path / "out"))
    kept = np.concatenate([np.arange(0, 6), np.arange(8, 14), np.arange(15, 21)])  # of 8, 7 and 8 tokens
    for tap, name in zip(
        TAPS,
        ("blocks.0.hook_resid_post", "blocks.2.hook_resid_post", "blocks.0.mlp_in", "blocks.2.mlp_in"),
        strict=True,
    ):
        assert found.features[name].shape == (3, outputs.HIDDEN)
        values = np.array(found.with_format("numpy")[name])
        assert values.dtype == np.float32
        assert np.array_equal(values.reshape(-1, outputs.HIDDEN), exports.values(run, tap)[kept].astype(np.float32))
    ids = np.array(found.with_format("numpy")["token_ids"])
    assert found.features["token_ids"].feature.dtype == "int32"
    assert np.array_equal(ids.reshape(-1), exports.column(run, "token_ids")[kept])
    assert "6 contexts of 3 tokens" in said
    assert "5 tokens (21.74%) at the ends of shards" in said
    assert "bfloat16 written as float32, exactly" in said
    assert "compared with the source: equal" in said


def test_hf_has_a_row_for_each_sample(
    run: Path, publish: Callable[[Path], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exports.told(capsys, publish(run), tmp_path / "out", "--to", "hf")
    found = datasets.load_from_disk(str(tmp_path / "out"))
    samples = ActivationDataset(run)
    assert len(found) == len(samples) == 6
    for number, sample in enumerate(samples):
        row, arrays = found[number], found.with_format("numpy")[number]
        assert (row["sample"], row["source"], row["sample_idx"]) == (number, "", sample.sample_idx)
        assert (row["task_id"], row["text_preview"]) == (sample.task_id, sample.text_preview)
        assert json.loads(row["origin"]) == json.loads(json.dumps(sample.origin))
        for name in ("token_ids", "positions", "flags", "role", "row", "colours"):
            assert row[name] == sample.column(name).tolist()
        for tap in TAPS:
            values = arrays[f"{tap.site}.{tap.layer}"]
            assert np.array_equal(values, sample.activation(*tap).astype(np.float32))
    assert str(found.features["token_ids"].feature.dtype) == "int32"


def map_shard_of_the_page() -> Callable[[Path, int], np.ndarray]:
    """The function that docs/export.md prints."""
    page = (commands.ROOT / "docs/export.md").read_text()
    (program,) = re.findall(r"```python\n(import json\n.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(program, names)
    return names["map_shard"]


def test_memmap_is_read_by_numpy_alone(
    run: Path, publish: Callable[[Path], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = exports.told(capsys, publish(run), tmp_path / "out", "--to", "memmap")
    names = ("layer_0_out", "layer_2_out", "layer_0_mlp_in", "layer_2_mlp_in")
    for tap, name in zip(TAPS, names, strict=True):
        config = json.loads((tmp_path / "out" / name / "config.json").read_text())
        assert (config["total_size"], config["shard_count"], config["d_model"]) == (TOKENS, 3, outputs.HIDDEN)
        parts = [map_shard_of_the_page()(tmp_path / "out" / name, shard) for shard in range(3)]
        assert all(part.dtype == ml_dtypes.bfloat16 for part in parts)
        assert exports.bits(np.concatenate(parts)) == exports.bits(exports.values(run, tap))
    columns = [dict(np.load(tmp_path / "out" / "columns" / f"shard_{shard}.npz")) for shard in range(3)]
    for name in ("token_ids", "positions", "flags", "role"):
        joined = np.concatenate([part[name] for part in columns])
        assert joined.dtype == exports.column(run, name).dtype
        assert np.array_equal(joined, exports.column(run, name))
    assert (
        np.concatenate([part["sample"] for part in columns]).tolist()
        == np.repeat(range(6), (3, 5, 3, 4, 2, 6)).tolist()
    )
    assert "values: bfloat16, as stored" in said


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "int8"])
def test_codes_are_exported_as_what_they_stand_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], dtype: str
) -> None:
    run = tmp_path / "run"
    outputs.write(run, outputs.three_shards(), outputs.shard_format(dtype=dtype, name="safetensors"))
    said = exports.told(capsys, run, tmp_path / "out", "--to", "hf")
    found = datasets.load_from_disk(str(tmp_path / "out"))
    assert f"values: {dtype.removesuffix('fn')} and scales written as float32, exactly" in said
    values = np.concatenate([np.array(row, np.float32) for row in found["residual.2"]])
    assert np.array_equal(values, exports.values(run, Tap(2, "residual")))


def test_the_token_ids_of_memmap_are_a_file_of_torch(run: Path, tmp_path: Path) -> None:
    import torch

    from layertap.cli import main

    assert main(["export", str(run), str(tmp_path / "out"), "--to", "memmap"]) == 0
    ids = torch.load(tmp_path / "out" / "tokens.pt", weights_only=True)
    assert ids.dtype == torch.int64
    assert ids.tolist() == exports.column(run, "token_ids").tolist()


def test_columns_have_the_names_of_the_hooks_on_the_page_of_sites() -> None:
    table = re.findall(
        r"^\| `(\w+)`[^|]*\|[^|]*\|([^|]*)\|", (commands.ROOT / "docs/sites.md").read_text(), re.MULTILINE
    )
    assert [site for site, _ in table if site in SITES] == [site for site, _ in table]
    assert {site for site, _ in table} == set(SITES)
    for site, cell in table:
        hook = re.search(r"`blocks\.L\.([\w.]+)`", cell)
        assert hook_name(Tap(7, site)) == f"blocks.7.{hook[1] if hook else site}"
