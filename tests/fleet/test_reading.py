"""What several workers made of a claimed dataset is read as one dataset, by its done-manifests."""

from pathlib import Path

import numpy as np
import pytest
from fleets import cut, whole, worker_of
from runs import changed, out

import layertap
from layertap.config.extract import ExtractConfig
from layertap.errors import UsageError
from layertap.fleet.worker import work


def test_workers_are_read_as_one_run_over_everything(config: ExtractConfig, place: str, tmp_path: Path) -> None:
    exact = changed(config, compute_dtype="float32")
    cut(exact.dataset_path, place, 3)
    work(worker_of(exact, place, 0, preferred_shard_id=2, max_shards=1))
    work(worker_of(exact, place, 1))
    left = next((out(exact) / "tpu_1").glob("shard_00000/*/"))
    _lost_attempt(left, out(exact) / "tpu_2/shard_00000/lost")
    with pytest.raises(UsageError, match="give sharded_dataset="):
        layertap.ActivationDataset(out(exact))
    dataset = layertap.ActivationDataset(out(exact), sharded_dataset=place)
    wanted_samples = whole(exact, tmp_path)
    assert sorted(sample.sample_idx for sample in dataset) == sorted(wanted_samples)
    for sample in dataset:
        wanted = wanted_samples[sample.sample_idx]
        np.testing.assert_array_equal(sample.token_ids, wanted["token_ids"])
        scale = np.abs(wanted["activation"]).max()
        np.testing.assert_allclose(sample.activation(3), wanted["activation"], rtol=0, atol=1e-5 * scale)
    assert sum(map(len, dataset.batches(64, layers=[3]))) == dataset.tokens


def _lost_attempt(there: Path, place: Path) -> None:
    """What another worker had of a shard when it lost it: the same, so far."""
    place.mkdir(parents=True)
    for path in there.iterdir():
        if path.is_file():
            (place / path.name).write_bytes(path.read_bytes())
