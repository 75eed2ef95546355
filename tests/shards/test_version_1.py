"""Outputs of format version 1, as Layertap 0.1.0 wrote them (tests/data/version_1), are still read.

Both hold the samples of `outputs.three_shards`, with an added sink: in sample 3, token 1, at layer
2 of the residual stream.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import outputs
import pytest
import shards

from layertap import ActivationDataset
from layertap.check.verify import verify
from layertap.cli import main
from layertap.core.columns import FIRST, SINK
from layertap.core.taps import Tap
from layertap.errors import RunMismatchError, UsageError
from layertap.objects import open_store
from layertap.shards.manifest_files import require_manifest
from layertap.shards.statistics_files import merge_folders

SITES = ("residual", "mlp")
AT_SINK = Tap(2, "residual")
DTYPES = {"pickle": "float32", "safetensors": "bfloat16"}


@pytest.fixture(params=DTYPES)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of an output of version 1; its name is its format."""
    place = Path(__file__).parents[1] / "data" / "version_1" / request.param
    return Path(shutil.copytree(place, tmp_path / request.param))


def samples(old):
    found = [sample for shard in outputs.three_shards(SITES) for sample in shard]
    found[3].activations[AT_SINK][1] *= 1000
    return found


def test_every_sample_is_read_as_it_was(old):
    dataset = ActivationDataset(old)
    assert (len(dataset), dataset.layers, dataset.sites, dataset.hidden_size) == (6, (0, 2), SITES, 4)
    for sample, expected in zip(dataset, samples(old), strict=True):
        assert (sample.sample_idx, sample.task_id) == (expected.sample_idx, expected.task_id)
        assert np.array_equal(sample.token_ids, expected.token_ids)
        assert np.array_equal(sample.column("positions"), expected.columns["positions"])
        for tap, values in expected.activations.items():
            stored = values.astype(np.dtype(DTYPES[old.name]))
            assert np.array_equal(sample.activation(*tap), stored)
            assert np.allclose(sample.norms(*tap), np.linalg.norm(stored.astype(float), axis=1), rtol=1e-6)


def test_sinks_are_those_that_were_stored(old):
    flags = ActivationDataset(old)[3].flags(2, "residual")
    assert flags.tolist()[:3] == [FIRST, SINK, 0]
    assert not (ActivationDataset(old)[3].column("flags") & SINK).any()


@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_leave_out_what_they_left_out(old, shuffle):
    batches = ActivationDataset(old).batches(
        4, layers=[2], sites=["residual"], exclude={"first", "sink"}, shuffle=shuffle
    )
    rows = [row for batch in batches for row in zip(batch.samples.tolist(), batch.positions.tolist(), strict=True)]
    every = [(number, position) for number, it in enumerate(samples(old)) for position in range(1, it.tokens)]
    assert sorted(rows) == sorted(set(every) - {(3, 1)})


def test_another_factor_is_refused(old):
    with pytest.raises(UsageError, match=r"format version 1, which stored sinks by a factor of 10"):
        list(ActivationDataset(old).batches(4, exclude={"sink"}, sink_factor=5.0))


def test_it_verifies_and_its_statistics_merge(old):
    assert verify(old).findings == ()
    merged = merge_folders([open_store(str(old))])
    assert {tap: row.count for tap, row in merged.items()} == {
        Tap(layer, site): 23 for site in SITES for layer in (0, 2)
    }


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("exclude", [(), ("first", "sink")])
def test_its_batches_come_normalised(old, center, exclude):
    batches = ActivationDataset(old).batches(23, center=center, scale="unit_rms", exclude=exclude)
    (batch,) = list(batches)
    assert np.allclose((batch.activations.astype(float) ** 2).mean(axis=(0, 2)), 1, rtol=1e-5)


def test_its_sinks_are_told_once_its_norms_are_read(old, capsys):
    assert main(["stats", "--json", str(old)]) == 0
    assert {told["sink_share"] for told in json.loads(capsys.readouterr().out)} == {None}
    assert main(["stats", "--json", "--norms", "all", str(old)]) == 0
    told = {Tap(it["layer"], it["site"]): it["sink_share"] for it in json.loads(capsys.readouterr().out)}
    assert told.pop(AT_SINK) > 0.99
    assert set(told.values()) == {0.0}


def test_inspect_shows_it(old, capsys):
    assert main(["inspect", str(old), "--sample", "3"]) == 0
    out = capsys.readouterr().out
    assert "sample 3 of task task1: 4 tokens, shape (4, 4)" in out
    assert next(line for line in out.splitlines() if line.split()[:2] == ["residual", "2"]).split()[7] == "1"


def edit_head(old, edit) -> None:
    path = old / "metadata.json"
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


def test_damage_in_it_is_found(old):
    name = "residual/layer_02/shard_0002.safetensors" if old.name == "safetensors" else "residual/shard_0002.pkl.gz"
    content = bytearray((old / name).read_bytes())
    content[-9] ^= 1
    (old / name).write_bytes(content)
    assert any(finding.startswith(f"{name}: has CRC-32C") for finding in verify(old).findings)


def test_a_flag_of_a_sink_that_is_not_one_is_found(old):
    if old.name == "pickle":
        name = "residual/shard_0001.pkl.gz"
        content = shards.read(old / name)
        content[2][1]["flags"][2] |= SINK
        outputs.dump(old / name, content)
    else:
        name = "residual/layer_02/shard_0001.safetensors"
        outputs.edit_tensors(old / name, lambda tensors, _: tensors["flags"].__ior__(np.uint8(SINK)))
    edit_head(old, lambda document: outputs.tell(old, document["shards"], name))
    assert any("the flag of sinks is wrong" in finding for finding in verify(old).findings)


def test_an_unfinished_run_of_it_is_not_gone_on_with(old):
    fresh = outputs.manifest(outputs.shard_format(SITES, DTYPES[old.name], name=old.name))
    with pytest.raises(RunMismatchError, match="format_version: 1 there, 2 now"):
        require_manifest(open_store(str(old))).require_same_run(fresh, old)
