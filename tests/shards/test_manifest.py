import dataclasses
import hashlib
import json
import string
from itertools import pairwise

import numpy as np
import outputs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layertap.errors import DamageError, RunMismatchError, StorageError
from layertap.shards.manifest import (
    Manifest,
    ShardEntry,
    StoredFile,
    fingerprint_of,
    index_ranges,
    listed_ranges,
    read_manifest,
    write_manifest,
)

SHARD = ShardEntry(1, 2, 30, ((0, 1),), (StoredFile("shard_0001.pkl.gz", "residual", None, 100, "0123abcd"),))
EMPTY = outputs.manifest(outputs.shard_format())
FULL = EMPTY.with_shard(SHARD, {"record": 1}, complete=False).with_shard(
    dataclasses.replace(SHARD, index=2, sample_idx=((2, 2), (5, 5))), {"record": 2}, complete=True
)

any_text = st.text(st.characters(codec=None), max_size=8)  # half a surrogate pair may come from JSON or from a path
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=6,
)
documents = st.dictionaries(any_text, json_values, max_size=4)
counts = st.integers(0, 10**9)
path_characters = string.ascii_letters + string.digits + "_-"
stored_files = st.builds(
    StoredFile, st.text(path_characters, min_size=1), any_text, st.none() | counts, counts, any_text
)
shard_entries = st.builds(
    ShardEntry,
    counts,
    counts,
    counts,
    st.lists(st.tuples(counts, counts), max_size=3).map(tuple),
    st.lists(stored_files, max_size=3).map(tuple),
)
manifests = st.builds(
    Manifest,
    fingerprint=any_text,
    identity=documents,
    config=documents,
    worker_id=counts,
    model_path=any_text,
    model_type=any_text,
    special_ids=st.lists(counts, max_size=3).map(tuple),
    format=any_text,
    layers=st.lists(counts, max_size=3).map(tuple),
    sites=st.lists(any_text, max_size=3).map(tuple),
    hidden_size=counts,
    storage_dtype=any_text,
    shards=st.lists(shard_entries, max_size=3).map(tuple),
    certificate=documents,
    progress=documents,
    complete=st.booleans(),
)


@given(manifests)
def test_what_is_written_is_read_back(tmp_path_factory, manifest):
    folder = tmp_path_factory.mktemp("output")
    write_manifest(folder, manifest)
    assert read_manifest(folder) == manifest


def test_a_folder_without_one_has_none(tmp_path):
    assert read_manifest(tmp_path) is None
    assert read_manifest(tmp_path / "missing") is None


def test_a_person_can_read_it_one_line_a_shard(tmp_path):
    write_manifest(tmp_path, FULL)
    text = (tmp_path / "metadata.json").read_text()
    lines = text.splitlines()
    assert text.endswith("}\n")
    assert lines[:2] == ["{", '  "format_version": 1,']
    begin = lines.index('  "shards": [')
    assert [json.loads(line.rstrip(","))["index"] for line in lines[begin + 1 : begin + 3]] == [1, 2]
    assert all(line.startswith('    {"index": ') for line in lines[begin + 1 : begin + 3])
    assert lines[begin + 3 :] == ["  ]", "}"]


@pytest.mark.parametrize("manifest", [EMPTY, FULL])
def test_it_is_json_with_version_and_totals(tmp_path, manifest):
    write_manifest(tmp_path, manifest)
    document = json.loads((tmp_path / "metadata.json").read_text(encoding="ascii"))
    assert document["format_version"] == 1
    assert document["totals"] == {
        "shards": len(manifest.shards),
        "samples": manifest.samples,
        "tokens": manifest.tokens,
    }


def test_equal_manifests_are_equal_bytes(tmp_path):
    for name in ("one", "two"):
        write_manifest(tmp_path / name, FULL)
    assert (tmp_path / "one/metadata.json").read_bytes() == (tmp_path / "two/metadata.json").read_bytes()


def test_the_fingerprint_is_of_the_identity_in_any_order():
    """It is in manifests, and must be the same in the next release."""
    expected = hashlib.sha256(b'{"a": [2], "b": 1}').hexdigest()
    assert fingerprint_of({"b": 1, "a": [2]}) == fingerprint_of({"a": [2], "b": 1}) == expected


def test_before_its_first_commit_a_run_has_nothing():
    assert (EMPTY.shards, EMPTY.progress, EMPTY.certificate, EMPTY.complete) == ((), {}, {}, False)


def test_a_commit_adds_its_shard_and_replaces_the_progress():
    assert [shard.index for shard in FULL.shards] == [1, 2]
    assert (FULL.samples, FULL.tokens, FULL.progress, FULL.complete) == (4, 60, {"record": 2}, True)
    assert EMPTY.with_shard(None, {"record": 9}, complete=True).shards == ()


@given(st.sets(st.integers(0, 60)))
def test_ranges_cover_exactly_the_indices_and_are_as_few_as_can_be(indices):
    ranges = index_ranges(indices)
    assert [index for first, last in ranges for index in range(first, last + 1)] == sorted(indices)
    gaps = [after - last for (_, last), (after, _) in pairwise(ranges)]
    assert all(gap > 1 for gap in gaps)


@given(st.lists(st.integers(0, 9)))
def test_ranges_cover_a_repeated_index_as_often_as_it_stands_there(indices):
    ranges = index_ranges(indices)
    assert sorted(index for first, last in ranges for index in range(first, last + 1)) == sorted(indices)


def test_ranges_are_listed_in_words():
    assert listed_ranges([(0, 3), (7, 7), (9, 12)]) == "0 to 3, 7 to 7, 9 to 12"


def now(**changed):
    return dataclasses.replace(EMPTY, **changed)


def test_the_same_run_may_go_on_with_other_paths_and_more_shards(tmp_path):
    other = now(config={"batch_size": 8, "output_dir": "elsewhere"})
    assert other.config != FULL.config
    FULL.require_same_run(other, tmp_path)  # raises nothing


@pytest.mark.parametrize(
    ("changed", "lines"),
    [
        ({"worker_id": 3}, ["worker_id: 0 there, 3 now"]),
        ({"identity": EMPTY.identity | {"layers": [0]}}, ["layers: [0, 2] there, [0] now"]),
        (
            {"identity": EMPTY.identity | {"storage": {"dtype": "float16"}}},
            ["storage.dtype: float32 there, float16 now"],
        ),
        ({"identity": {"storage": {"dtype": "float32"}}}, ["layers: [0, 2] there, None now"]),
        ({"identity": EMPTY.identity | {"X.X": 1}}, ["X.X: None there, 1 now"]),
        ({"identity": EMPTY.identity | {"new": {"deep": 1}}}, ["new: None there, {'deep': 1} now"]),
        (
            {"identity": {"layers": 7, "storage": {"dtype": "bfloat16"}}, "worker_id": 1},
            ["layers: [0, 2] there, 7 now", "storage.dtype: float32 there, bfloat16 now", "worker_id: 0 there, 1 now"],
        ),
    ],
)
def test_another_run_is_refused_and_everything_that_differs_is_said(tmp_path, changed, lines):
    with pytest.raises(RunMismatchError) as refused:
        FULL.require_same_run(now(**changed), tmp_path)
    first, *told = str(refused.value).splitlines()
    assert first == f"{tmp_path} holds another run's output; give another --output_dir, or the same settings:"
    assert [line.strip() for line in told] == lines


def refusal(folder, kind=DamageError) -> str:
    with pytest.raises(kind) as refused:
        read_manifest(folder)
    assert str(refused.value).startswith(f"{folder / 'metadata.json'}: ")
    return str(refused.value)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is not JSON"),
        (b'{"format_version": 1,', "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "is not a Layertap manifest of format version 1"),
        (b"{}", "is not a Layertap manifest of format version 1"),
        (b'{"format_version": 2}', "is not a Layertap manifest of format version 1"),
        (b'{"format_version": 1}', "lacks or garbles a field"),
    ],
)
def test_what_is_no_manifest_is_refused_with_what_to_do(tmp_path, content, complaint):
    (tmp_path / "metadata.json").write_bytes(content)
    message = refusal(tmp_path)
    assert complaint in message
    assert message.endswith("restore it from a copy, or extract into another --output_dir")


def edited(folder, *keys, value=None) -> None:
    """Replace what stands under `keys`, or take it out where there is no value."""
    write_manifest(folder, FULL)
    path = folder / "metadata.json"
    document = place = json.loads(path.read_text())
    for key in keys[:-1]:
        place = place[key]
    if value is None:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    path.write_text(json.dumps(document))


FIELDS = [
    *((field.name,) for field in dataclasses.fields(Manifest)),
    ("totals",),
    *(("shards", 1, field.name) for field in dataclasses.fields(ShardEntry)),
    *(("shards", 1, "files", 0, field.name) for field in dataclasses.fields(StoredFile)),
]


@pytest.mark.parametrize("keys", FIELDS, ids=lambda keys: ".".join(map(str, keys)))
def test_each_missing_field_is_named(tmp_path, keys):
    edited(tmp_path, *keys)
    assert f"KeyError('{keys[-1]}')" in refusal(tmp_path)


@pytest.mark.parametrize("keys", FIELDS, ids=lambda keys: ".".join(map(str, keys)))
def test_each_field_of_another_type_is_named(tmp_path, keys):
    edited(tmp_path, *keys, value=1.5)
    assert f"{keys[-1]} " in refusal(tmp_path)
    assert "1.5" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("shards",), [7]),
        (("shards", 0, "files"), ["shard_0001.pkl.gz"]),
        (("shards", 0, "sample_idx"), [[0]]),
        (("shards", 0, "sample_idx"), [[0, 1.5]]),
        (("shards", 0, "sample_idx"), [["0", "1"]]),
        (("shards", 0, "samples"), True),
        (("shards", 0, "index"), "1"),
        (("layers",), ["0"]),
    ],
)
def test_a_garbled_value_inside_is_refused(tmp_path, keys, value):
    edited(tmp_path, *keys, value=value)
    assert "lacks or garbles a field" in refusal(tmp_path)


@pytest.mark.parametrize("path", ["/etc/passwd", "../shard_0001.pkl.gz", "mlp/../../x"])
def test_a_path_that_leads_out_of_the_folder_is_refused(tmp_path, path):
    edited(tmp_path, "shards", 0, "files", 0, "path", value=path)
    assert f"path {path!r} leads out of the folder" in refusal(tmp_path)


@pytest.mark.parametrize("total", ["shards", "samples", "tokens"])
def test_totals_that_do_not_add_up_are_refused(tmp_path, total):
    edited(tmp_path, "totals", total, value=17)
    assert f"'{total}': 17" in refusal(tmp_path)


def test_a_folder_in_its_place_cannot_be_read(tmp_path):
    (tmp_path / "metadata.json").mkdir()
    assert "cannot be read: Is a directory" in refusal(tmp_path, StorageError)


def test_a_file_in_the_place_of_the_output_folder_cannot_be_read(tmp_path):
    (tmp_path / "output").touch()
    assert "cannot be read: Not a directory" in refusal(tmp_path / "output", StorageError)


def test_numpy_numbers_do_not_reach_the_file_in_silence(tmp_path):
    write_manifest(tmp_path, EMPTY)
    before = (tmp_path / "metadata.json").read_bytes()
    with pytest.raises(TypeError):
        write_manifest(tmp_path, dataclasses.replace(EMPTY, hidden_size=np.int64(4)))
    assert (tmp_path / "metadata.json").read_bytes() == before
