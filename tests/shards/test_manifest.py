import dataclasses
import hashlib
import json
import string
from itertools import pairwise

import google_crc32c
import numpy as np
import outputs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layertap.core.taps import SITES, Tap
from layertap.errors import DamageError, RunMismatchError
from layertap.objects import open_store
from layertap.shards.manifest import (
    SHARDS_A_PART,
    Manifest,
    ShardEntry,
    StoredFile,
    fingerprint_of,
    index_ranges,
    listed_ranges,
)
from layertap.shards.manifest_files import commit_manifest, head_bytes, load_manifest, part_bytes, write_manifest

SHARD = ShardEntry(1, 2, 30, ((0, 1),), (StoredFile("shard_0001.pkl.gz", "activations", "residual", 100, "0123abcd"),))
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
    StoredFile, st.text(path_characters, min_size=1), any_text, st.none() | any_text, counts, any_text
)
shard_entries = st.builds(
    ShardEntry,
    counts,
    counts,
    counts,
    st.lists(st.tuples(counts, counts), max_size=3).map(tuple),
    st.lists(stored_files, max_size=3).map(tuple),
)
site_widths = st.dictionaries(st.sampled_from(SITES), counts, min_size=1)
manifests = st.builds(
    Manifest,
    fingerprint=any_text,
    identity=documents,
    config=documents,
    worker_id=counts,
    model_path=any_text,
    model_type=any_text,
    special_ids=st.lists(counts, max_size=3).map(tuple),
    format=st.sampled_from(["pickle", "safetensors"]),
    taps=st.builds(
        lambda widths, layers: {Tap(layer, site): width for site, width in widths.items() for layer in layers},
        site_widths,
        st.lists(counts, min_size=1, max_size=3, unique=True),
    ),
    storage_dtype=any_text,
    columns=st.dictionaries(any_text, any_text, max_size=3).map(
        lambda more: {**more, "token_ids": "int32", "flags": "uint8"}
    ),
    shards=st.lists(shard_entries, max_size=3).map(tuple),
    certificate=documents,
    progress=documents,
    complete=st.booleans(),
)


def load(folder) -> Manifest | None:
    return load_manifest(open_store(str(folder)))


def write(folder, manifest) -> None:
    write_manifest(open_store(str(folder)), manifest)


def many(count) -> Manifest:
    shards = tuple(dataclasses.replace(SHARD, index=index) for index in range(1, count + 1))
    return dataclasses.replace(EMPTY, shards=shards)


@given(manifests)
def test_what_is_written_is_read_back(tmp_path_factory, manifest):
    folder = tmp_path_factory.mktemp("output")
    write(folder, manifest)
    assert load(folder) == manifest


def test_a_folder_without_one_has_none(tmp_path):
    assert load(tmp_path) is None
    assert load(tmp_path / "missing") is None


def test_a_person_can_read_it_one_line_a_shard(tmp_path):
    write(tmp_path, FULL)
    text = (tmp_path / "metadata.json").read_text(encoding="ascii")
    assert text.startswith('{\n  "format_version": 2,\n')
    assert text.endswith("}\n")
    assert json.loads(text)["totals"] == {"shards": 2, "samples": 4, "tokens": 60}
    lines = (tmp_path / outputs.PART).read_text(encoding="ascii").splitlines()
    assert [json.loads(line)["index"] for line in lines] == [1, 2]


@pytest.mark.parametrize("count", [1, SHARDS_A_PART - 1, SHARDS_A_PART, SHARDS_A_PART + 1, 2 * SHARDS_A_PART + 5])
def test_commits_write_the_last_part_alone_and_list_every_shard(tmp_path, count):
    store, manifest = open_store(str(tmp_path)), EMPTY
    for number, entry in enumerate(many(count).shards, 1):
        before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("manifest/*")}
        manifest = manifest.with_shard(entry, {"record": number}, complete=False)
        commit_manifest(store, manifest)
        last = max(path.name for path in tmp_path.glob("manifest/*"))
        assert all(
            (tmp_path / "manifest" / name).stat().st_mtime_ns == time for name, time in before.items() if name != last
        )
    assert load(tmp_path) == manifest
    assert len(list(tmp_path.glob("manifest/*"))) == -(-count // SHARDS_A_PART)
    write(tmp_path / "at_once", manifest)
    assert {path.name for path in tmp_path.glob("at_once/manifest/*")} == {
        path.name for path in tmp_path.glob("manifest/*")
    }
    for path in tmp_path.glob("manifest/*"):
        assert path.read_bytes() == (tmp_path / "at_once/manifest" / path.name).read_bytes()


def test_a_commit_costs_the_same_for_the_first_shard_and_the_thousandth():
    early, late = many(101), many(1001)
    sizes = [len(head_bytes(it)) + len(part_bytes(it, -(-len(it.shards) // SHARDS_A_PART))) for it in (early, late)]
    assert abs(sizes[1] - sizes[0]) < 20  # digits


def test_a_line_of_a_commit_that_did_not_happen_does_not_count(tmp_path):
    store, one = open_store(str(tmp_path)), many(1)
    write_manifest(store, many(2))
    (tmp_path / "metadata.json").write_bytes(head_bytes(one))  # as if killed between part and head
    assert load_manifest(store) == one


@pytest.mark.parametrize(
    "damage",
    [
        lambda part: part.unlink(),
        lambda part: part.write_bytes(b""),
        lambda part: part.write_bytes(part.read_bytes().replace(b'"tokens": 30', b'"tokens": 31')),
        lambda part: part.write_bytes(part.read_bytes().splitlines(keepends=True)[1]),
    ],
    ids=["missing", "empty", "edited", "first line lost"],
)
def test_a_damaged_part_is_noticed(tmp_path, damage):
    write(tmp_path, FULL)
    damage(tmp_path / outputs.PART)
    with pytest.raises(DamageError, match="manifest"):
        load(tmp_path)


def test_equal_manifests_are_equal_bytes():
    assert head_bytes(FULL) == head_bytes(dataclasses.replace(FULL))
    assert part_bytes(FULL, 1) == part_bytes(dataclasses.replace(FULL), 1)


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
    assert listed_ranges([(0, 3), (7, 7), (9, 12)]) == "0 to 3, 7, 9 to 12"
    assert listed_ranges([(0, 3), (7, 7), (9, 12)], most=1) == "0 to 3, and 2 more ranges"


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
        load(folder)
    assert str(refused.value).startswith(f"{folder / 'metadata.json'}: ")
    return str(refused.value)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is not JSON"),
        (b'{"format_version": 1,', "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "is not a Layertap manifest of format version 1 or 2"),
        (b'{"format_version": 3}', "is not a Layertap manifest of format version 1 or 2"),
        (b'{"format_version": true}', "is not a Layertap manifest of format version 1 or 2"),
        (b'{"format_version": 1}', "a field is missing or damaged"),
        (b'{"format_version": 2}', "a field is missing or damaged"),
    ],
)
def test_what_is_no_manifest_is_refused_with_what_to_do(tmp_path, content, complaint):
    (tmp_path / "metadata.json").write_bytes(content)
    message = refusal(tmp_path)
    assert complaint in message
    assert message.endswith("restore it from a copy, or extract into another --output_dir")


def edited(folder, *keys, value=None) -> None:
    """Replace the value under `keys`, or remove it if none is given; `shards` are those in the
    part.
    """
    write(folder, FULL)
    path, part = folder / "metadata.json", folder / outputs.PART
    document = place = json.loads(path.read_text())
    document["shards"] = [json.loads(line) for line in part.read_text().splitlines()]
    for key in keys[:-1]:
        place = place[key]
    if value is None:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    part.write_text("".join(json.dumps(shard) + "\n" for shard in document.pop("shards")))
    document["shards_crc32c"] = f"{google_crc32c.value(part.read_bytes()):08x}"
    path.write_text(json.dumps(document))


OWN = {"shards", "taps", "format_version"}
FIELDS = [
    *((field.name,) for field in dataclasses.fields(Manifest) if field.name not in OWN),
    ("taps",),
    ("totals",),
    *(("shards", 1, field.name) for field in dataclasses.fields(ShardEntry) if field.name != "nonfinite"),
    *(("shards", 1, "files", 0, name) for name in ("path", "kind", "bytes", "crc32c")),
]


@pytest.mark.parametrize("keys", FIELDS, ids=lambda keys: ".".join(map(str, keys)))
def test_each_missing_field_and_each_of_another_type_is_named(tmp_path, keys):
    edited(tmp_path, *keys)
    assert f"KeyError('{keys[-1]}')" in refusal(tmp_path)
    edited(tmp_path, *keys, value=1.5)
    assert "a field is missing or damaged" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("shards", 0), 7),
        (("shards", 0, "files"), ["shard_0001.pkl.gz"]),
        (("shards", 0, "sample_idx"), [[0]]),
        (("shards", 0, "sample_idx"), [[0, 1.5]]),
        (("shards", 0, "sample_idx"), [["0", "1"]]),
        (("shards", 0, "samples"), True),
        (("shards", 0, "nonfinite"), "1"),
        (("shards", 0, "nonfinite"), 1),  # the totals say that there is none
        (("shards", 0, "index"), "1"),
        (("taps",), []),
        (("taps", 0, "layers"), ["0"]),
        (("taps", 0, "width"), "4"),
        (("taps", 0, "site"), "elsewhere"),
        (("format",), "parquet"),
        (("columns",), {"flags": "uint8"}),
    ],
)
def test_a_damaged_value_inside_is_refused(tmp_path, keys, value):
    edited(tmp_path, *keys, value=value)
    assert "a field is missing or damaged" in refusal(tmp_path)


@pytest.mark.parametrize("path", ["/etc/passwd", "../shard_0001.pkl.gz", "mlp/../../x"])
def test_a_path_that_leads_out_of_the_folder_is_refused(tmp_path, path):
    edited(tmp_path, "shards", 0, "files", 0, "path", value=path)
    assert f"path {path!r} leads out of the folder" in refusal(tmp_path)


@pytest.mark.parametrize("total", ["samples", "tokens"])
def test_totals_that_do_not_add_up_are_refused(tmp_path, total):
    edited(tmp_path, "totals", total, value=17)
    assert f"'{total}': 17" in refusal(tmp_path)


def test_numpy_numbers_do_not_reach_the_file_in_silence(tmp_path):
    write(tmp_path, EMPTY)
    before = (tmp_path / "metadata.json").read_bytes()
    with pytest.raises(TypeError):
        write(tmp_path, dataclasses.replace(EMPTY, worker_id=np.int64(4)))
    assert (tmp_path / "metadata.json").read_bytes() == before
