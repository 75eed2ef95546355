import json

import numpy as np
import outputs
import pytest
from safetensors import safe_open

from layertap.cli import main
from layertap.core.taps import Tap
from layertap.errors import DamageError, UsageError
from layertap.objects import open_store
from layertap.shards.statistics_files import merge_folders

SITES = ("residual", "mlp")
MILLIONTH = 1e-6


def every(shards, tap, dtype="float32"):
    """The stored values of these shards at a tap, in float64."""
    values = [sample.activations[tap] for samples in shards for sample in samples]
    return np.concatenate(values).astype(np.dtype(dtype)).astype(np.float64)


@pytest.mark.parametrize("name", ["pickle", "safetensors"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_statistics_of_a_folder_are_those_of_what_it_holds(tmp_path, name, dtype):
    shards = outputs.three_shards(SITES)
    outputs.write(tmp_path, shards, outputs.shard_format(SITES, dtype, name=name))
    merged = merge_folders([open_store(str(tmp_path))])
    assert list(merged) == [Tap(layer, site) for site in SITES for layer in outputs.LAYERS]
    for tap, statistics in merged.items():
        values = every(shards, tap, dtype)
        assert statistics.count == 23
        std = values.std(axis=0)
        assert (abs(statistics.mean - values.mean(axis=0)) < MILLIONTH * std).all()
        assert np.allclose(statistics.std, std, rtol=MILLIONTH)
        assert np.isclose(statistics.max_norm, np.linalg.norm(values, axis=1).max(), rtol=MILLIONTH)


def test_workers_folders_merge_into_the_statistics_of_one_run(tmp_path):
    shards = outputs.three_shards()
    form = outputs.shard_format()
    outputs.write(tmp_path / "whole", shards, form)
    outputs.write(tmp_path / "tpu_0", shards[:1], form)
    outputs.write(tmp_path / "tpu_1", shards[1:], form)
    (tap, whole), *_ = merge_folders([open_store(str(tmp_path / "whole"))]).items()
    parts = merge_folders([open_store(str(tmp_path / f"tpu_{worker}")) for worker in (1, 0)])[tap]
    for name in ("count", "mean", "m2", "mean_norm", "mean_square_norm", "max_norm"):
        assert np.allclose(getattr(parts, name), getattr(whole, name), rtol=1e-12)
    assert (parts.max_sample_idx, parts.max_position) == (whole.max_sample_idx, whole.max_position)


def test_the_safetensors_library_reads_them(folder):
    with safe_open(folder / "statistics" / "shard_0002.safetensors", "numpy") as file:
        assert json.loads(file.metadata()["taps"]) == [[0, "residual", 4], [2, "residual", 4]]
        assert file.get_tensor("mean").shape == (2 * outputs.HIDDEN,)
        assert file.get_tensor("count").tolist() == [7, 7]


def test_what_the_manifest_does_not_name_does_not_count(folder):
    before = merge_folders([open_store(str(folder))])[Tap(0, "residual")].count
    (folder / "statistics" / "shard_0004.safetensors").write_bytes(b"in the making")
    assert merge_folders([open_store(str(folder))])[Tap(0, "residual")].count == before


def test_damage_is_refused_and_named(folder):
    path = folder / "statistics" / "shard_0002.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-3] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(DamageError, match=r"statistics/shard_0002\.safetensors: has CRC-32C"):
        merge_folders([open_store(str(folder))])


def test_a_shard_in_the_place_of_statistics_is_refused_and_named(tmp_path):
    outputs.write(tmp_path, outputs.three_shards(), outputs.shard_format(name="safetensors"))
    name = "statistics/shard_0001.safetensors"
    (tmp_path / name).write_bytes((tmp_path / "shard_0001.safetensors").read_bytes())
    outputs.believe(tmp_path, name)
    with pytest.raises(DamageError, match=r"cannot be read as statistics: it is not a file of layertap-statistics 1"):
        merge_folders([open_store(str(tmp_path))])


def test_another_models_statistics_are_not_merged(tmp_path):
    for name in ("one", "two"):
        outputs.write(tmp_path / name, outputs.three_shards(), outputs.shard_format())
    outputs.edit_manifest(tmp_path / "two", lambda document: document["identity"].update(model={"weights": "other"}))
    with pytest.raises(UsageError, match="two holds activations of another model"):
        merge_folders([open_store(str(tmp_path / "one")), open_store(str(tmp_path / "two"))])


def test_a_folder_that_no_run_wrote_is_refused(tmp_path, capsys):
    assert main(["stats", str(tmp_path)]) == 2
    assert "is not the output folder of a run" in capsys.readouterr().err


def test_the_command_prints_every_channel_as_json(folder, capsys):
    assert main(["stats", "--json", str(folder), str(folder)]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["site"], first["layer"], second["layer"], first["count"]) == ("residual", 0, 2, 46)
    values = every(outputs.three_shards(), Tap(0, "residual"))
    assert np.allclose(first["mean"], values.mean(axis=0))
    assert np.allclose(first["std"], values.std(axis=0))
    top = first["max_norm"]
    found = next(s for samples in outputs.three_shards() for s in samples if s.sample_idx == top["sample_idx"])
    assert np.isclose(np.linalg.norm(found.activations[Tap(0, "residual")][top["position"]]), top["norm"])
