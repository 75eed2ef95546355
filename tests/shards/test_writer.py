import json

import numpy as np
import outputs
import pytest
import shards
from hypothesis import given
from hypothesis import strategies as st

from layertap.check.verify import verify
from layertap.core.columns import token_columns
from layertap.core.sample import Sample
from layertap.errors import StorageError
from layertap.objects import open_store
from layertap.shards.manifest_files import load_manifest
from layertap.shards.writer import ShardBuffer, ShardWriter

FORMAT = outputs.shard_format()
TENSORS = outputs.shard_format(name="safetensors")
THREE_SITES = outputs.shard_format(("residual", "mlp", "attn"))


def nothing(_manifest):
    pass


def writer(folder, form=FORMAT, after_commit=nothing, manifest=None) -> ShardWriter:
    return ShardWriter(open_store(str(folder)), manifest or outputs.manifest(form), form, after_commit)


def bare(index: int, tokens: int) -> Sample:
    """A sample of which only the length matters."""
    return Sample(index, "task", "prompt", token_columns(np.zeros(tokens, np.int32), frozenset()))


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


def test_every_site_has_its_own_folder_and_its_own_activations(tmp_path):
    samples = [outputs.sample(index, sites=THREE_SITES.sites) for index in range(2)]
    writer(tmp_path, THREE_SITES).commit(samples, {}, complete=True)
    assert sorted(shards.contents(tmp_path)) == [
        "attn/shard_0001.pkl.gz",
        "manifest/part_0001.jsonl",
        "metadata.json",
        "mlp/shard_0001.pkl.gz",
        "residual/shard_0001.pkl.gz",
        "statistics/shard_0001.safetensors",
    ]
    for site in THREE_SITES.sites:
        for entry, sample in zip(shards.read(tmp_path / site / "shard_0001.pkl.gz")[2], samples, strict=True):
            assert np.array_equal(entry["activation"], sample.activations[2, site])


def test_a_commit_without_samples_keeps_the_progress_alone(tmp_path):
    writer(tmp_path).commit([], {"record": 8}, complete=True)
    assert list(shards.contents(tmp_path)) == ["metadata.json"]
    manifest = load_manifest(open_store(str(tmp_path)))
    assert (manifest.shards, manifest.progress, manifest.complete) == ((), {"record": 8}, True)


def test_what_follows_a_commit_finds_it_on_disk(tmp_path):
    found = []

    def look(manifest):
        assert load_manifest(open_store(str(tmp_path))) == manifest
        assert verify(tmp_path).sound
        found.append(len(manifest.shards))

    committing = writer(tmp_path, after_commit=look)
    for index in range(3):
        committing.commit([outputs.sample(index)], {}, complete=index == 2)
    assert found == [1, 2, 3]


def test_a_writer_goes_on_from_the_shards_of_its_manifest(tmp_path):
    writer(tmp_path).commit([outputs.sample(0)], {}, complete=False)
    writer(tmp_path, manifest=load_manifest(open_store(str(tmp_path)))).commit([outputs.sample(1)], {}, complete=True)
    assert [shard.files[0].path for shard in load_manifest(open_store(str(tmp_path))).shards] == [
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
        (TENSORS, "shard_0002.safetensors"),
        (FORMAT, "statistics/shard_0002.safetensors"),
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


def test_the_manifest_lists_no_shard_twice_after_many_commits(tmp_path):
    committing = writer(tmp_path)
    for index in range(12):
        committing.commit([outputs.sample(index)], {"record": index}, complete=False)
    listed = [json.loads(line) for line in (tmp_path / outputs.PART).read_text().splitlines()]
    assert [shard["index"] for shard in listed] == list(range(1, 13))
    assert len({shard["files"][0]["path"] for shard in listed}) == 12


def test_a_shard_encoded_ahead_is_appended_as_if_it_had_been_committed(tmp_path):
    expected = undisturbed(tmp_path / "undisturbed", FORMAT)
    ahead = writer(tmp_path / "output")
    second, first = (ahead.encode(index, [outputs.sample(index - 1)]) for index in (2, 1))
    assert not (tmp_path / "output").exists()
    ahead.append(first, {"record": 1}, complete=False)
    ahead.append(second, {"record": 2}, complete=True)
    assert shards.contents(tmp_path / "output") == expected


def test_appends_that_are_handed_on_give_the_same_folder(tmp_path):
    contents = outputs.three_shards()
    at_once, later = (tmp_path / name for name in ("at_once", "later"))
    outputs.write(at_once, contents, FORMAT)
    waiting, own = [], writer(later)
    with own.appending_by(waiting.append):
        for number, samples in enumerate(contents, 1):
            own.commit(samples, {"record": number}, complete=number == len(contents))
    assert not own.manifest.shards
    assert not list(later.glob("shard_*"))
    for append in waiting:
        append()
    assert shards.contents(later) == shards.contents(at_once)
    own.commit([], {"record": 4}, complete=True)  # at once again
    assert own.manifest.progress == {"record": 4}
