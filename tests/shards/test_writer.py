import json
from collections import Counter
from dataclasses import replace
from unittest.mock import Mock

import ml_dtypes  # noqa: F401 - numpy knows bfloat16 from here on
import numpy as np
import outputs
import pytest
import shards
from hypothesis import given
from hypothesis import strategies as st

from layertap.check.verify import verify
from layertap.errors import StorageError
from layertap.objects.files import file_crc32c
from layertap.shards.manifest import read_manifest
from layertap.shards.samples import StoredSample
from layertap.shards.tensors import parse_tensors
from layertap.shards.writer import ShardBuffer, ShardFormat, ShardWriter

FORMAT = outputs.shard_format()
TENSORS = outputs.shard_format(name="safetensors")
THREE_SITES = outputs.shard_format(("residual", "mlp", "attn"))


def nothing(_manifest):
    pass


def writer(folder, form=FORMAT, after_commit=nothing, manifest=None) -> ShardWriter:
    return ShardWriter(folder, manifest or outputs.manifest(form), form, after_commit)


def bare(index: int, tokens: int) -> StoredSample:
    """A sample of which only the length counts."""
    return StoredSample(index, "task", "prompt", np.zeros(tokens, np.int32), {})


@pytest.mark.parametrize("name", ["pickle", "safetensors"])
@pytest.mark.parametrize(
    ("given", "stored"), [("float32", "float16"), ("bfloat16", "float16"), ("bfloat16", "float32")]
)
def test_each_activation_is_converted_once(tmp_path, monkeypatch, name, given, stored):
    converted = Counter()
    convert = StoredSample.stored

    def counted(self, tap, dtype):
        if self.activations[tap].dtype != dtype:
            converted[self.sample_idx, tap] += 1
        return convert(self, tap, dtype)

    monkeypatch.setattr(StoredSample, "stored", counted)
    form = outputs.shard_format(dtype=stored, name=name)
    samples = [outputs.sample(index) for index in range(3)]
    as_given = [
        replace(one, activations={tap: values.astype(given) for tap, values in one.activations.items()})
        for one in samples
    ]
    looks = Mock(wraps=np.isfinite)
    monkeypatch.setattr("layertap.shards.samples.np.isfinite", looks)  # whether what became infinite was finite before
    writer(tmp_path, form).commit(list(as_given), {"record": 1}, complete=True)
    assert converted == {(index, tap): 1 for index in range(3) for tap in form.taps}
    on_samples = [call for call in looks.call_args_list if call.args[0].ndim == 2]
    assert len(on_samples) == (len(converted) if stored == "float16" else 0)
    assert verify(tmp_path).sound


def test_bytes_per_token_counts_every_layer_and_site():
    assert outputs.shard_format(dtype="float32").bytes_per_token == 2 * 1 * 4 * 4
    assert outputs.shard_format(("residual", "mlp", "attn"), "float16").bytes_per_token == 2 * 3 * 4 * 2


@given(st.lists(st.integers(1, 20)), st.integers(1, 40))
def test_a_shard_is_closed_before_it_is_too_large_and_not_earlier(lengths, limit_tokens):
    limit = limit_tokens * FORMAT.bytes_per_token
    buffer, closed = ShardBuffer(FORMAT, limit), []
    for sample in (bare(index, tokens) for index, tokens in enumerate(lengths)):
        if not buffer.has_room(sample):
            closed.append((buffer.take(), sample))
            assert len(buffer) == 0
        buffer.add(sample)
    whole = [*(samples for samples, _ in closed), buffer.take()]
    assert [sample.sample_idx for samples in whole for sample in samples] == list(range(len(lengths)))
    for samples in whole:
        assert sum(sample.tokens for sample in samples) <= limit_tokens or len(samples) == 1
    for samples, refused in closed:
        assert sum(sample.tokens for sample in samples) + refused.tokens > limit_tokens


def test_an_empty_shard_takes_any_sample_and_then_no_other():
    buffer = ShardBuffer(FORMAT, 1)
    assert buffer.has_room(bare(0, 1000))
    buffer.add(bare(0, 1000))
    assert not buffer.has_room(bare(1, 1))
    assert len(buffer) == 1


@pytest.mark.parametrize(
    ("form", "index", "paths"),
    [
        (FORMAT, 1, ["shard_0001.pkl.gz"]),
        (FORMAT, 12345, ["shard_12345.pkl.gz"]),
        (outputs.shard_format(compress=False), 20, ["shard_0020.pkl"]),
        (THREE_SITES, 3, [f"{site}/shard_0003.pkl.gz" for site in ("residual", "mlp", "attn")]),
        (TENSORS, 3, ["residual/layer_00/shard_0003.safetensors", "residual/layer_02/shard_0003.safetensors"]),
        (
            outputs.shard_format(("mlp", "attn"), name="safetensors"),
            12345,
            [f"{site}/layer_{layer}/shard_12345.safetensors" for site in ("mlp", "attn") for layer in ("00", "02")],
        ),
    ],
)
def test_shards_are_named_by_number_and_by_what_they_hold(form, index, paths):
    assert [file.path for file in form.files(index)] == paths


def test_a_pickle_holds_all_layers_of_a_site_and_a_tensor_file_one():
    assert [(file.site, file.layer) for file in TENSORS.files(1)] == [("residual", 0), ("residual", 2)]
    assert [(file.site, file.layer) for file in THREE_SITES.files(1)] == [(site, None) for site in THREE_SITES.sites]


def test_pickles_are_the_default():
    assert ShardFormat((0,), ("residual",), 4, np.dtype("float32"), compress=False).name == "pickle"


def test_every_tensor_file_has_its_own_layer_and_says_of_which_run_it_is(tmp_path):
    samples = [outputs.sample(index) for index in range(2)]
    writer(tmp_path, TENSORS).commit(samples, {}, complete=True)
    for layer in TENSORS.layers:
        path = tmp_path / f"residual/layer_{layer:02d}/shard_0001.safetensors"
        file = parse_tensors(path.read_bytes(), path.name)
        assert np.array_equal(
            file.tensors["activations"], np.concatenate([s.activations[layer, "residual"] for s in samples])
        )
        run = outputs.manifest(TENSORS)
        about = {"model_path": run.model_path, "model_type": run.model_type, "fingerprint": run.fingerprint}
        assert about.items() <= file.metadata.items()
    (shard,) = read_manifest(tmp_path).shards
    assert [file.layer for file in shard.files] == [0, 2, None]


def test_every_site_has_its_own_folder_and_its_own_activations(tmp_path):
    samples = [outputs.sample(index, sites=THREE_SITES.sites) for index in range(2)]
    writer(tmp_path, THREE_SITES).commit(samples, {}, complete=True)
    assert sorted(shards.contents(tmp_path)) == [
        "attn/shard_0001.pkl.gz",
        "metadata.json",
        "mlp/shard_0001.pkl.gz",
        "residual/shard_0001.pkl.gz",
        "statistics/shard_0001.safetensors",
    ]
    for site in THREE_SITES.sites:
        for entry, sample in zip(shards.read(tmp_path / site / "shard_0001.pkl.gz")[2], samples, strict=True):
            assert np.array_equal(entry["activation"], sample.activations[2, site])


def test_the_manifest_tells_what_was_written(tmp_path):
    samples = [outputs.sample(4, tokens=3), outputs.sample(5, tokens=2), outputs.sample(9, tokens=1)]
    writer(tmp_path).commit(samples, {"record": 3}, complete=False)
    manifest = read_manifest(tmp_path)
    (shard,) = manifest.shards
    file, statistics = shard.files
    assert (shard.index, shard.samples, shard.tokens, shard.sample_idx) == (1, 3, 6, ((4, 5), (9, 9)))
    assert (file.path, file.kind, file.site, file.layer) == ("shard_0001.pkl.gz", "activations", "residual", None)
    assert (statistics.path, statistics.kind) == ("statistics/shard_0001.safetensors", "statistics")
    assert file.bytes == (tmp_path / file.path).stat().st_size
    assert file.crc32c == file_crc32c(tmp_path / file.path)
    assert (manifest.progress, manifest.complete) == ({"record": 3}, False)


def test_a_commit_without_samples_keeps_the_progress_alone(tmp_path):
    writer(tmp_path).commit([], {"record": 8}, complete=True)
    assert list(shards.contents(tmp_path)) == ["metadata.json"]
    manifest = read_manifest(tmp_path)
    assert (manifest.shards, manifest.progress, manifest.complete) == ((), {"record": 8}, True)


def test_what_follows_a_commit_finds_it_on_disk(tmp_path):
    found = []

    def look(manifest):
        assert read_manifest(tmp_path) == manifest
        assert verify(tmp_path).sound
        found.append(len(manifest.shards))

    committing = writer(tmp_path, after_commit=look)
    for index in range(3):
        committing.commit([outputs.sample(index)], {}, complete=index == 2)
    assert found == [1, 2, 3]


def test_a_writer_goes_on_from_the_shards_of_its_manifest(tmp_path):
    writer(tmp_path).commit([outputs.sample(0)], {}, complete=False)
    writer(tmp_path, manifest=read_manifest(tmp_path)).commit([outputs.sample(1)], {}, complete=True)
    assert [shard.files[0].path for shard in read_manifest(tmp_path).shards] == [
        "shard_0001.pkl.gz",
        "shard_0002.pkl.gz",
    ]
    assert verify(tmp_path).sound


def undisturbed(folder, form):
    outputs.write(folder, [[outputs.sample(index, sites=form.sites)] for index in range(2)], form)
    return shards.contents(folder)


@pytest.mark.parametrize(
    ("form", "blocked"),
    [
        (FORMAT, "shard_0002.pkl.gz"),
        (THREE_SITES, "attn/shard_0002.pkl.gz"),
        (TENSORS, "residual/layer_02/shard_0002.safetensors"),
    ],
)
def test_a_failing_shard_leaves_the_previous_manifest_and_can_be_committed_again(tmp_path, form, blocked):
    expected = undisturbed(tmp_path / "undisturbed", form)
    output, told = tmp_path / "output", []
    committing = writer(output, form, after_commit=told.append)
    committing.commit([outputs.sample(0, sites=form.sites)], {"record": 1}, complete=False)
    (output / blocked).mkdir()
    before = (output / "metadata.json").read_bytes()

    second = [outputs.sample(1, sites=form.sites)]
    with pytest.raises(StorageError, match=blocked):
        committing.commit(second, {"record": 2}, complete=True)
    assert (output / "metadata.json").read_bytes() == before
    assert len(committing.manifest.shards) == 1
    assert len(told) == 1

    (output / blocked).rmdir()
    committing.commit(second, {"record": 2}, complete=True)
    assert shards.contents(output) == expected


def test_a_failing_manifest_commits_nothing(tmp_path):
    (tmp_path / "metadata.json").mkdir()
    told = []
    committing = writer(tmp_path, after_commit=told.append)
    with pytest.raises(StorageError, match=r"metadata\.json: cannot be written"):
        committing.commit([outputs.sample(0)], {}, complete=True)
    assert committing.manifest.shards == ()
    assert told == []


def test_what_a_killed_run_left_is_written_over(tmp_path):
    expected = undisturbed(tmp_path / "undisturbed", FORMAT)
    output = tmp_path / "output"
    output.mkdir()
    (output / "shard_0001.pkl.gz").write_bytes(b"not committed")
    undisturbed(output, FORMAT)
    assert shards.contents(output) == expected


def test_a_value_too_large_for_float16_is_refused_before_anything_is_committed(tmp_path):
    form = outputs.shard_format(dtype="float16")
    sample = outputs.sample(0)
    sample.activations[2, "residual"][1, 1] = 1e6
    with pytest.raises(StorageError, match="sample 0, layer 2, residual"):
        writer(tmp_path, form).commit([sample], {}, complete=True)
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_names_no_shard_twice_after_many_commits(tmp_path):
    committing = writer(tmp_path)
    for index in range(12):
        committing.commit([outputs.sample(index)], {"record": index}, complete=False)
    document = json.loads((tmp_path / "metadata.json").read_text())
    assert [shard["index"] for shard in document["shards"]] == list(range(1, 13))
    assert len({shard["files"][0]["path"] for shard in document["shards"]}) == 12
