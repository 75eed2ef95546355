"""Workers that write only to a bucket: any machine continues where the one before was."""

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from clouds import BUCKET
from fakes.gcs import FakeGcs
from fleets import cut, done, worker_of
from runs import changed, small_run

import layertap
from layertap.cli import main
from layertap.config.extract import ExtractConfig
from layertap.errors import StorageError
from layertap.fleet.worker import work
from layertap.objects import open_store
from layertap.objects.ownership import Owner
from layertap.shards.writer import ShardWriter

DATASET, OUTPUT = f"gs://{BUCKET}/dataset", f"gs://{BUCKET}/out"


@pytest.fixture
def fleet(
    tiny_model: Path, demo_tasks: Path, tmp_path: Path, gcs: FakeGcs, monkeypatch: pytest.MonkeyPatch
) -> ExtractConfig:
    """Settings of a worker of three shards. It starts in a folder that must stay empty."""
    cut(demo_tasks, DATASET, 3)
    (tmp_path / "machine").mkdir()
    monkeypatch.chdir(tmp_path / "machine")
    config = small_run(
        demo_tasks, tiny_model, tmp_path, predictions_per_task=1, output_dir=OUTPUT, checkpoint_dir="./checkpoints"
    )
    return worker_of(config, DATASET)


def interrupt_after(commits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    commit, made = ShardWriter.commit, 0

    def interrupted(self: ShardWriter, *arguments: object, **options: object) -> None:
        nonlocal made
        made += 1
        if made > commits:
            raise KeyboardInterrupt
        commit(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(ShardWriter, "commit", interrupted)


@pytest.mark.whole
def test_a_worker_goes_on_in_its_shard_on_another_machine(
    fleet: ExtractConfig, gcs: FakeGcs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(2, patch)
        with pytest.raises(KeyboardInterrupt):
            work(fleet)
    (begun,) = {name.rpartition("/shard_0001.")[0] for name in gcs.contents(BUCKET, "out/") if "shard_0001.pkl" in name}
    assert work(fleet).shards == 3
    with closing(open_store(DATASET)) as store:
        found = done(store)
    assert f"{OUTPUT}/{begun}" in [manifest["output"] for manifest in found]
    assert all(manifest["output"].startswith(f"{OUTPUT}/tpu_0/") for manifest in found)
    assert not list((tmp_path / "machine").iterdir())
    assert not [name for name in gcs.contents(BUCKET, "out/") if name.endswith("owner.json")]
    assert any("/metrics/" in name for name in gcs.contents(BUCKET, "out/"))
    assert main(["verify", "--json", DATASET]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["sound"], report["complete"], report["folders"]) == (True, True, 3)


@pytest.mark.whole
def test_it_is_what_a_worker_with_a_disk_writes(fleet: ExtractConfig, demo_tasks: Path, tmp_path: Path) -> None:
    work(fleet)
    local = changed(fleet, output_dir=str(tmp_path / "out"), checkpoint_dir=str(tmp_path / "checkpoints"))
    cut(demo_tasks, str(tmp_path / "dataset"), 3)
    work(changed(local, sharded=worker_of(local, str(tmp_path / "dataset")).sharded))
    far = layertap.ActivationDataset(OUTPUT, sharded_dataset=DATASET)
    near = layertap.ActivationDataset(tmp_path / "out", sharded_dataset=str(tmp_path / "dataset"))
    numbers = sorted(sample.sample_idx for sample in near)
    assert numbers == sorted(sample.sample_idx for sample in far) != []
    for number in numbers:
        np.testing.assert_array_equal(far.sample(number).activation(3), near.sample(number).activation(3))


def test_a_second_worker_with_the_same_number_is_refused(fleet: ExtractConfig) -> None:
    with (
        closing(open_store(f"{OUTPUT}/tpu_0")) as place,
        Owner(place, beat=0.2),
        pytest.raises(StorageError, match=r"tpu_0: process \d+ .* writes here.* --worker_id"),
    ):
        work(fleet)
