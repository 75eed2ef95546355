"""A reader returns the samples that were written, from any place. It reads folders together only if
they fit together.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import commands
import numpy as np
import outputs
import pytest
from clouds import BUCKET
from fakes.gcs import FakeGcs

import layertap
from layertap.core.sample import Sample
from layertap.errors import DamageError, UsageError
from layertap.objects import open_store
from layertap.shards.manifest import fingerprint_of
from layertap.shards.writer import ShardWriter

SITES = ("residual", "mlp")


def write_run(folder: Path, contents: Sequence[Sequence[Sample]], form: str = "safetensors", **changed: Any) -> None:
    """A run of these shards, with another manifest."""
    shard_format = outputs.shard_format(name=form)
    identity = {**outputs.manifest(shard_format).identity, **changed.pop("identity", {})}
    manifest = outputs.manifest(shard_format, identity=identity, fingerprint=fingerprint_of(identity), **changed)
    writer = ShardWriter(open_store(str(folder)), manifest, shard_format, lambda _: None)
    for number, samples in enumerate(contents, 1):
        writer.commit(samples, {}, complete=number == len(contents))


def of_stream(stream: str) -> list[list[Sample]]:
    """Samples numbered from 0, of tasks that only this stream has."""
    return [[replace(sample, task_id=f"{stream}-{sample.task_id}") for sample in shard] for shard in some_shards()]


def some_shards() -> list[list[Sample]]:
    return outputs.three_shards()[:2]


def same(read: layertap.ActivationDataset, index: int, written: Sample) -> None:
    sample = read[index]
    assert (sample.sample_idx, sample.task_id, sample.text_preview) == (
        written.sample_idx,
        written.task_id,
        written.text_preview,
    )
    assert json.dumps(sample.origin) == json.dumps(written.origin)
    np.testing.assert_array_equal(sample.token_ids, written.token_ids)
    np.testing.assert_array_equal(sample.positions, np.arange(written.tokens))
    assert len(sample) == written.tokens
    for tap, activation in written.activations.items():
        np.testing.assert_array_equal(sample.activation(*tap), activation)
        assert sample.flags(*tap)[0] & 1
        np.testing.assert_allclose(sample.norms(*tap), np.linalg.norm(activation, axis=1), rtol=1e-6)


def test_every_sample_is_what_was_written(tmp_path: Path, form: str, publish: Callable[[Path], str]) -> None:
    written = outputs.three_shards(SITES)
    outputs.write(tmp_path / "out", written, outputs.shard_format(SITES, name=form))
    dataset = layertap.ActivationDataset(publish(tmp_path / "out"))
    assert (len(dataset), dataset.tokens, dataset.layers, dataset.sites) == (6, 23, (0, 2), SITES)
    assert (dataset.hidden_size, dataset.storage_dtypes, dataset.complete) == (4, ("float32",), True)
    for index, sample in enumerate(sample for shard in written for sample in shard):
        same(dataset, index, sample)
    dataset.close()


def test_samples_are_a_sequence(folder: Path) -> None:
    dataset = layertap.ActivationDataset(folder)
    assert dataset[-1].sample_idx == 5
    assert [sample.sample_idx for sample in dataset[1:4]] == [1, 2, 3]
    assert [sample.sample_idx for sample in dataset] == list(range(6))
    with pytest.raises(IndexError, match="has 6 samples, and none at index 6"):
        dataset[6]


def test_layers_and_sites_that_are_not_there_are_refused(folder: Path) -> None:
    sample = layertap.ActivationDataset(folder)[0]
    with pytest.raises(UsageError, match="holds layers 0, 2 at residual, not layer 1 at residual"):
        sample.activation(1)
    with pytest.raises(UsageError, match="not layer 0 at mlp"):
        sample.flags(0, "mlp")


def test_of_several_sites_one_must_be_named(tmp_path: Path) -> None:
    outputs.write(tmp_path, outputs.three_shards(SITES), outputs.shard_format(SITES))
    with pytest.raises(UsageError, match="several sites; give one of residual, mlp"):
        layertap.ActivationDataset(tmp_path)[0].activation(0)


def test_local_safetensors_are_mapped_and_stay_as_they_are(tmp_path: Path) -> None:
    outputs.write(tmp_path, outputs.three_shards(), outputs.shard_format(name="safetensors"))
    before = (tmp_path / "shard_0001.safetensors").read_bytes()
    sample = layertap.ActivationDataset(tmp_path)[0]
    one, two = sample.activation(0), sample.activation(0)
    assert np.shares_memory(one, two)
    assert one.flags.aligned
    one[:] = 0  # of the copy on write
    assert (tmp_path / "shard_0001.safetensors").read_bytes() == before


def test_a_sample_from_a_bucket_costs_its_own_bytes(tmp_path: Path, gcs: FakeGcs) -> None:
    tokens, hidden = 100_000, outputs.HIDDEN
    outputs.write(
        tmp_path, [[outputs.sample(0, tokens), outputs.sample(1, 3)]], outputs.shard_format(name="safetensors")
    )
    for path in tmp_path.rglob("*.*"):
        gcs.put(BUCKET, f"a/{path.relative_to(tmp_path).as_posix()}", path.read_bytes())
    sample = layertap.ActivationDataset(f"gs://{BUCKET}/a")[1]
    before = gcs.sent
    assert sample.activation(0).shape == (3, hidden)
    assert gcs.sent - before < (260 << 10) < tokens * hidden * 4  # most of it in the hope of a long header
    before = gcs.sent
    np.testing.assert_array_equal(sample.activation(0), outputs.sample(1, 3).activations[0, "residual"])
    assert gcs.sent - before == 3 * hidden * 4


def test_workers_are_read_together_in_order_of_their_names(tmp_path: Path, publish: Callable[[Path], str]) -> None:
    shards = outputs.three_shards()
    write_run(tmp_path / "out" / "tpu_1", shards[:1])
    write_run(tmp_path / "out" / "tpu_0", shards[1:], "pickle")
    dataset = layertap.ActivationDataset(publish(tmp_path / "out"))
    assert dataset.sources == ("tpu_0", "tpu_1")
    assert [sample.sample_idx for sample in dataset] == [2, 3, 4, 5, 0, 1]
    assert [sample.source for sample in dataset[::4]] == ["tpu_0", "tpu_1"]


@pytest.mark.parametrize("name", ["dataset_path", "dataset_name", "dataset_split", "column_name"])
def test_streams_may_count_alike(tmp_path: Path, form: str, name: str) -> None:
    for worker, stream in enumerate(("a", "b")):
        config = {name: f"stream_{worker}.jsonl"}
        write_run(tmp_path / f"tpu_{worker}", of_stream(stream), form, worker_id=worker, config=config)
    assert len(layertap.ActivationDataset(tmp_path)) == 8


def test_streams_under_one_name_are_told_apart_by_what_they_hold(tmp_path: Path, form: str) -> None:
    for stream in ("a", "b"):
        write_run(tmp_path / stream, of_stream(stream), form, config={"dataset_path": "mine.jsonl"})
    assert len(layertap.ActivationDataset(tmp_path)) == 8


@pytest.mark.parametrize(
    ("form", "changed"),
    [
        ("safetensors", {}),  # a copy
        ("safetensors", {"config": {"dataset_path": "moved.jsonl"}}),  # the same bytes by another name
        ("safetensors", {"identity": {"packing": 2}, "config": {"dataset_path": "moved.jsonl"}}),  # packed otherwise
        ("pickle", {"identity": {"format": 2}}),  # another format
    ],
)
def test_the_same_samples_twice_are_refused(tmp_path: Path, form: str, changed: dict[str, Any]) -> None:
    write_run(tmp_path / "one", some_shards())
    write_run(tmp_path / "two", some_shards(), form, **changed)
    with pytest.raises(UsageError, match="one and two hold the same samples, such as sample_idx 0"):
        layertap.ActivationDataset(tmp_path)


def test_a_part_of_the_samples_twice_is_refused(tmp_path: Path) -> None:
    shards = outputs.three_shards()
    write_run(tmp_path / "one", shards[:2])
    write_run(tmp_path / "two", shards[1:], identity={"packing": 2})
    with pytest.raises(UsageError, match="such as sample_idx 2"):
        layertap.ActivationDataset(tmp_path)


def test_a_sample_twice_in_one_folder_is_damage(tmp_path: Path) -> None:
    write_run(tmp_path, [[outputs.sample(0)], [outputs.sample(0)]])
    with pytest.raises(DamageError, match="has sample 0 twice"):
        layertap.ActivationDataset(tmp_path)


@pytest.mark.parametrize("identity", [{"model": {"compute_dtype": "float32"}}, {"model": {"weights": "other"}}])
def test_runs_of_other_models_are_refused(tmp_path: Path, identity: dict[str, Any]) -> None:
    write_run(tmp_path / "tpu_0", of_stream("a"))
    write_run(tmp_path / "tpu_1", of_stream("b"), identity=identity)
    with pytest.raises(UsageError, match="tpu_0 and tpu_1 differ in model"):
        layertap.ActivationDataset(tmp_path)


def test_runs_with_other_taps_are_refused(tmp_path: Path) -> None:
    outputs.write(tmp_path / "a", outputs.three_shards(), outputs.shard_format())
    outputs.write(tmp_path / "b", outputs.three_shards(SITES), outputs.shard_format(SITES))
    with pytest.raises(UsageError, match="a and b differ in sites"):
        layertap.ActivationDataset(tmp_path)


def test_a_place_without_a_run_is_refused(tmp_path: Path, gcs: FakeGcs) -> None:
    for place in (tmp_path, f"gs://{BUCKET}/nothing"):
        with pytest.raises(UsageError, match=r"no metadata\.json there or below"):
            layertap.ActivationDataset(place)


def attempt(root: Path, name: str, part: str, first: int, *, complete: bool = True, **share: int) -> dict[str, Any]:
    """An attempt at a dataset shard with two samples from `first` on, and its done-manifest."""
    shard_format = outputs.shard_format(name="safetensors")
    identity = {"dataset": {"part": part, "first_sample_idx": 0, **share}}
    manifest = outputs.manifest(shard_format, identity=identity, fingerprint=fingerprint_of(identity))
    folder = root / part / name
    writer = ShardWriter(open_store(str(folder)), manifest, shard_format, lambda _: None)
    writer.commit([outputs.sample(first), outputs.sample(first + 1)], {}, complete=complete)
    told = {"shard": part, "attempt": name, "samples": 2, "output": str(folder)}
    return {**told, "fingerprint": manifest.fingerprint}


@pytest.fixture
def claimed(tmp_path: Path) -> Path:
    """Two dataset shards, with done-manifests in `dataset`. Two workers attempted the first one."""
    (tmp_path / "dataset/done").mkdir(parents=True)
    attempt(tmp_path / "out/tpu_0", "aaaa", "shard_00000", 0, complete=False)
    for done in (
        attempt(tmp_path / "out/tpu_1", "bbbb", "shard_00000", 0),
        attempt(tmp_path / "out/tpu_0", "cccc", "shard_00001", 2),
    ):
        (tmp_path / f"dataset/done/{done['shard']}.json").write_text(json.dumps(done))
    return tmp_path


def test_done_manifests_tell_which_attempts_count(claimed: Path) -> None:
    dataset = layertap.ActivationDataset(claimed / "out", sharded_dataset=str(claimed / "dataset"))
    assert dataset.sources == ("tpu_1/shard_00000/bbbb", "tpu_0/shard_00001/cccc")
    assert [sample.sample_idx for sample in dataset] == [0, 1, 2, 3]


def test_without_them_attempts_are_not_guessed_at(claimed: Path) -> None:
    with pytest.raises(UsageError, match=r"aaaa: is incomplete, .* give sharded_dataset="):
        layertap.ActivationDataset(claimed / "out")
    attempt(claimed / "twice/tpu_0", "aaaa", "shard_00000", 0)
    attempt(claimed / "twice/tpu_1", "bbbb", "shard_00000", 0)
    with pytest.raises(UsageError, match="exist, as attempts at dataset shard shard_00000"):
        layertap.ActivationDataset(claimed / "twice")


def test_without_them_whole_single_attempts_are_read(tmp_path: Path) -> None:
    attempt(tmp_path, "aaaa", "shard_00000", 0)
    attempt(tmp_path, "bbbb", "shard_00001", 2)
    assert len(layertap.ActivationDataset(tmp_path)) == 4


def test_hosts_of_a_slice_have_a_part_each(tmp_path: Path) -> None:
    hosts = [
        attempt(tmp_path / f"out/tpu_0_host_{host}", "aaaa", "shard_00000", 2 * host, machine_id=host)
        for host in range(2)
    ]
    assert len(layertap.ActivationDataset(tmp_path / "out")) == 4
    (tmp_path / "dataset/done").mkdir(parents=True)
    done = {"shard": "shard_00000", "attempt": "aaaa", "samples": 4, "hosts": hosts}
    (tmp_path / "dataset/done/shard_00000.json").write_text(json.dumps(done))
    attempt(tmp_path / "out/tpu_1_host_1", "bbbb", "shard_00000", 2, machine_id=1, complete=False)
    dataset = layertap.ActivationDataset(tmp_path / "out", sharded_dataset=str(tmp_path / "dataset"))
    assert dataset.sources == tuple(f"tpu_0_host_{host}/shard_00000/aaaa" for host in range(2))


def test_an_attempt_that_counts_and_is_not_there_is_damage(claimed: Path) -> None:
    with pytest.raises(DamageError, match=r"lacks the attempt bbbb at dataset shard shard_00000 .* was written to"):
        layertap.ActivationDataset(claimed / "out/tpu_0", sharded_dataset=str(claimed / "dataset"))


def test_a_damaged_done_manifest_is_damage(claimed: Path) -> None:
    (claimed / "dataset/done/shard_00000.json").write_text("{}")
    with pytest.raises(DamageError, match="is not a valid done-manifest"):
        layertap.ActivationDataset(claimed / "out", sharded_dataset=str(claimed / "dataset"))


def test_importing_it_imports_neither_jax_nor_torch(folder: Path) -> None:
    code = (
        "import sys, layertap; assert 'numpy' not in sys.modules;"
        f"d = layertap.ActivationDataset({str(folder)!r}); d[0].activation(0);"
        "assert not {'jax', 'torch', 'google.cloud'} & set(sys.modules)"
    )
    done = commands.run(["-c", code], folder)
    assert done.returncode == 0, done.stderr
