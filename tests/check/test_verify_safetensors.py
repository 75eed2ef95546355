"""`verify` finds and names each kind of damage to safetensors shards, mostly with matching size and
checksum.
"""

import json
import shutil

import numpy as np
import outputs
import pytest

from layertap.check.verify import verify
from layertap.core.taps import Tap

FILE, OTHER = "shard_0002.safetensors", "shard_0003.safetensors"
STATISTICS = "statistics/shard_0002.safetensors"
SITES = ("residual", "mlp")


@pytest.fixture
def tensors(tmp_path):
    """A sound output folder of three shards, two sites and two layers, in bfloat16."""
    outputs.write(tmp_path, outputs.three_shards(SITES), outputs.shard_format(SITES, "bfloat16", name="safetensors"))
    return tmp_path


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float8_e4m3fn", "int8"])
def test_what_was_just_written_is_sound(tmp_path, dtype):
    outputs.write(tmp_path, outputs.three_shards(), outputs.shard_format(dtype=dtype, name="safetensors"))
    assert outputs.findings(tmp_path) == []


def test_a_run_resumed_at_another_place_of_the_disk_is_sound(tensors, tmp_path):
    shutil.copytree(tensors, tmp_path / "copy")
    assert verify(tmp_path / "copy").sound


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "int8"])
def test_codes_of_tokens_that_are_kept_though_not_finite_are_sound(tmp_path, dtype):
    contents = outputs.three_shards()
    contents[1][0].activations[Tap(0, "residual")][1, 2] = np.nan
    outputs.write(tmp_path, contents, outputs.shard_format(dtype=dtype, name="safetensors", keep_nonfinite=True))
    assert outputs.findings(tmp_path) == []


def use_half_of_the_range(tensors):
    """Halve the codes of two tokens, with norms that match."""
    codes = tensors["residual.2"]
    codes[:2] = (codes[:2].astype(np.float32) / 2).astype(codes.dtype)
    tensors["norms"][1, :2] = np.linalg.norm(codes[:2].astype(np.float32) * tensors["scales"][1, :2, None], axis=1)


def turn_a_sign(tensors):
    tensors["scales"][1, 1] *= -1


@pytest.mark.parametrize(
    ("edit", "token", "count"), [(use_half_of_the_range, 0, 2), (turn_a_sign, 1, 1)], ids=["range", "sign"]
)
@pytest.mark.parametrize("dtype", ["float8_e4m3", "int8"])
def test_codes_that_do_not_fit_their_scales_are_found(tmp_path, dtype, edit, token, count):
    """The norms do not show it."""
    form = outputs.shard_format(dtype=dtype.replace("e4m3", "e4m3fn"), name="safetensors")
    outputs.write(tmp_path, outputs.three_shards(), form)
    outputs.rewrite_tensors(tmp_path, FILE, lambda tensors, _: edit(tensors))
    found = outputs.the_finding(tmp_path)
    assert found.startswith(f"{FILE}: layer 2, residual, sample 2: scale of token {token} is ")
    assert found.endswith(f"its largest code not the largest of {dtype}; {count} are wrong")


# Damage that size or checksum tell


def test_a_flipped_bit_is_found(tensors):
    damaged = bytearray((tensors / FILE).read_bytes())
    damaged[-40] ^= 16
    (tensors / FILE).write_bytes(damaged)
    assert outputs.the_finding(tensors).startswith(f"{FILE}: has CRC-32C ")


def test_a_cut_file_a_missing_one_and_a_strange_one_are_found(tensors):
    whole = (tensors / FILE).read_bytes()
    (tensors / FILE).write_bytes(whole[:-1])
    (tensors / OTHER).unlink()
    (tensors / "mlp").mkdir()
    shutil.copy(tensors / STATISTICS, tensors / "mlp" / "shard_0002.safetensors")
    assert outputs.findings(tensors) == [
        "mlp/shard_0002.safetensors: not named by metadata.json",
        f"{FILE}: has {len(whole) - 1} bytes, should have {len(whole)}",
        f"{OTHER}: missing",
    ]


# Damage that the manifest believes


def test_swapped_shards_are_found(tensors):
    (tensors / FILE).rename(tensors / "kept")
    (tensors / OTHER).rename(tensors / FILE)
    (tensors / "kept").rename(tensors / OTHER)
    for name in (FILE, OTHER):
        outputs.believe(tensors, name)
    found = outputs.findings(tensors)
    assert [line.partition(":")[0] for line in found] == [FILE, OTHER]


def test_swapped_layers_are_found_by_norms_and_statistics(tensors):
    def swap(tensors, _):
        tensors["residual.0"], tensors["residual.2"] = tensors["residual.2"], tensors["residual.0"]

    def swap_norms(tensors, _):
        tensors["norms"][:2] = tensors["norms"][1::-1].copy()

    outputs.rewrite_tensors(tensors, FILE, swap)
    assert any(f"{FILE}: layer 0, residual, sample 2: norm of token 0" in line for line in outputs.findings(tensors))
    outputs.rewrite_tensors(tensors, FILE, swap_norms)
    assert outputs.findings(tensors) == [
        f"{STATISTICS}: layer 0, residual: mean is not that of the activations",
        f"{STATISTICS}: layer 2, residual: mean is not that of the activations",
    ]


def add_one(tensors, name, at):
    tensors[name][at] += 1


def longer(tensors):
    """Add one token at the end, so that only the manifest's count is wrong in this file."""
    for name, values in tensors.items():
        if name not in ("sample_offsets", "sample_idx"):
            last = values[:, -1:] if name == "norms" else values[-1:]
            tensors[name] = np.concatenate([values, last], axis=int(name == "norms"))
    add_one(tensors, "positions", -1)
    add_one(tensors, "sample_offsets", -1)


def backwards(tensors):
    tensors["sample_offsets"][1] = 7
    tensors["sample_offsets"][2] = 4


def convert(tensors, name, dtype):
    tensors[name] = tensors[name].astype(dtype)


@pytest.mark.parametrize(
    ("edit", "finding"),
    [
        (
            lambda tensors, _: convert(tensors, "residual.0", "f2"),
            "residual.0 is float16 [7, 4], should be bfloat16",
        ),
        (
            lambda tensors, _: convert(tensors, "token_ids", "i8"),
            "token_ids is int64 [7], should be int32 [7]",
        ),
        (
            lambda tensors, _: convert(tensors, "sample_offsets", "i4"),
            "sample_offsets is int32 [3], should be int64",
        ),
        (lambda tensors, _: tensors["residual.0"].__setitem__((2, 2), np.nan), "sample 2: activation has a NaN"),
        (lambda tensors, _: tensors["residual.0"].__setitem__((6, 0), np.inf), "sample 3: activation has a NaN"),
        (lambda tensors, _: add_one(tensors, "sample_offsets", 1), "sample 2: positions of token 3 are 0, should be 3"),
        (lambda tensors, _: add_one(tensors, "sample_offsets", 2), "sample_offsets do not rise from 0 to the number"),
        (lambda tensors, _: add_one(tensors, "sample_offsets", 0), "sample_offsets do not rise from 0 to the number"),
        (lambda tensors, _: backwards(tensors), "sample_offsets do not rise from 0 to the number"),
        (lambda tensors, _: add_one(tensors, "positions", 5), "sample 3: positions of token 2 are 3, should be 2"),
        (lambda tensors, _: longer(tensors), "residual.0 is bfloat16 [8, 4], should be bfloat16 [7, 4]"),
        (lambda tensors, _: add_one(tensors, "sample_idx", 1), "holds samples 2, 4, should hold 2 to 3"),
        (lambda tensors, _: add_one(tensors, "flags", 0), "sample 2: flags of token 0 are 2, should be 1; 1 are wrong"),
        (lambda tensors, _: add_one(tensors, "flags", 2), "sample 2: flags of token 2 are 1, should be 0"),
        (lambda tensors, _: tensors["flags"].__iadd__(128), "flags of token 0 are 129, should be 1; 4 are wrong"),
        (lambda tensors, _: tensors["residual.0"].__setitem__((0, 0), 7), "sample 2: norm of token 0 is"),
        (lambda _, metadata: metadata.update(fingerprint="0"), "metadata says fingerprint 0, should say"),
        (lambda _, metadata: metadata.update(format_version="1"), "metadata says format_version 1, should say 2"),
        (
            lambda tensors, _: tensors["norms"].__setitem__((1, 2), 9),
            "sample 2: norm of token 2 is 9",
        ),
        (lambda _, metadata: metadata.update(samples="[]"), "describes 0 samples, should describe 2"),
        (lambda _, metadata: metadata.update(samples="{"), "its list of samples in words cannot be read"),
        (lambda _, metadata: metadata.update(samples="[1, 2]"), "its list of samples in words cannot be read"),
        (lambda tensors, _: tensors.update(more=tensors.pop("flags")), "flags is missing, should be"),
    ],
)
def test_content_that_is_wrong_is_found_though_its_checksum_is_right(tensors, edit, finding):
    outputs.rewrite_tensors(tensors, FILE, edit)
    found = outputs.findings(tensors)
    assert any(finding in line for line in found), found
    assert all("shard_0002" in line for line in found)  # and nothing else is suspected


def test_data_that_cannot_be_mapped_is_found(tensors):
    content = (tensors / FILE).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + length])).encode() + b" "
    header += b" " * (len(header) % 64 == 56)
    (tensors / FILE).write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    outputs.believe(tensors, FILE)
    assert "which is not a multiple of 64" in outputs.the_finding(tensors)


@pytest.mark.parametrize("garbage", [b"", b"\0" * 8, b"not safetensors", b"\xff" * 100])
@pytest.mark.parametrize("name", [FILE, STATISTICS])
def test_a_file_that_is_none_is_a_finding_and_no_traceback(tensors, name, garbage):
    (tensors / name).write_bytes(garbage)
    outputs.believe(tensors, name)
    assert outputs.the_finding(tensors).startswith(f"{name}: is not a whole safetensors file: ")


@pytest.mark.parametrize(
    ("field", "finding"),
    [
        ("count", "count is not that of the activations"),
        ("mean", "mean is not that of the activations"),
        ("m2", "m2 is not that of the activations"),
        ("mean_norm", "mean_norm is not that of the activations"),
        ("mean_square_norm", "mean_square_norm is not that of the activations"),
        ("max_norm", "max_norm is not that of the activations"),
        ("max_position", "the largest norm is not at token"),
        ("max_sample_idx", "the largest norm is not at token"),
    ],
)
def test_statistics_that_are_wrong_are_found(tensors, field, finding):
    outputs.rewrite_tensors(tensors, STATISTICS, lambda tensors, _: tensors[field].__iadd__(1))
    found = outputs.findings(tensors)
    assert len(found) == 4  # at every tap
    assert all(finding in line and line.startswith(STATISTICS) for line in found)


def test_statistics_of_other_taps_are_found(tensors):
    outputs.rewrite_tensors(tensors, STATISTICS, lambda _, metadata: metadata.update(taps='[[0, "attn"]]'))
    assert "cannot be read as statistics" in outputs.the_finding(tensors)


def test_statistics_taken_out_of_the_manifest_are_missed(tensors):
    (tensors / STATISTICS).unlink()
    outputs.edit_manifest(tensors, lambda document: document["shards"][1]["files"].pop())
    assert outputs.the_finding(tensors) == "shard 2: has files of activations; should have activations, statistics"


# Damage to the manifest


def test_an_edited_identity_is_found(tensors):
    outputs.edit_manifest(tensors, lambda document: document["identity"].update(layertap="9"))
    assert outputs.the_finding(tensors).startswith("metadata.json: the fingerprint does not match the identity")


def whole_run(document, samples, skipped=(), dataset=None):
    """The manifest of a complete run by one machine, up to this sample."""
    document["identity"]["dataset"] = dataset or {"total_machines": 1}
    document["fingerprint"] = outputs.fingerprint_of(document["identity"])
    listed = [{"sample_idx": index, "action": "skipped"} for index in skipped]
    document["progress"] = {"sample_idx": samples, "overlong_samples": {"count": len(listed), "list": listed}}


@pytest.mark.parametrize(
    ("samples", "skipped", "findings"),
    [
        (6, [], []),
        (9, [], ["samples 6 to 8 are in no shard"]),
        (9, [6, 8], ["samples 7 to 7 are in no shard"]),
        (9, [6, 7, 8], []),
    ],
)
def test_samples_that_a_complete_run_lacks_are_found(folder, samples, skipped, findings):
    outputs.edit_manifest(folder, lambda document: whole_run(document, samples, skipped))
    assert outputs.findings(folder) == findings


@pytest.mark.parametrize(
    ("numbers", "end", "findings"),
    [
        ([0, 1, 10, 20], 30, []),  # three texts of two contexts and one, and one
        ([0, 1, 20], 30, ["samples 2 to 19 are in no shard"]),
        ([0, 1, 10, 22], 32, ["samples 11 to 21 are in no shard"]),
        ([0, 1, 2, 12], 22, []),  # two tasks come before the first text
        ([0, 10], 30, ["samples 11 to 29 are in no shard"]),
        ([1, 11], 21, ["samples 0 to 0 are in no shard"]),
    ],
)
def test_texts_that_may_be_split_have_gaps_only_behind_their_contexts(tmp_path, numbers, end, findings):
    outputs.write(tmp_path, [[outputs.sample(number) for number in numbers]], outputs.shard_format())

    def of_texts(document):
        document["identity"]["prompts"] = {"numbers_per_text": 10}
        whole_run(document, end)

    outputs.edit_manifest(tmp_path, of_texts)
    assert outputs.findings(tmp_path) == findings


def test_a_last_shard_taken_out_with_its_files_is_found(folder):
    outputs.edit_manifest(folder, lambda document: (whole_run(document, 6), document["shards"].pop()))
    for path in folder.rglob("shard_0003*"):
        path.unlink()
    assert outputs.the_finding(folder) == "samples 4 to 5 are in no shard"


@pytest.mark.parametrize(
    ("first", "end", "findings"),
    [
        (2, 6, []),
        (1, 6, ["samples 1 to 1 are in no shard"]),
        (2, 8, ["samples 6 to 7 are in no shard"]),
    ],
)
def test_samples_that_a_shard_of_a_dataset_lacks_are_found(tmp_path, first, end, findings):
    outputs.write(tmp_path, outputs.three_shards()[1:], outputs.shard_format())  # samples 2 to 5
    dataset = {"part": "shard_001", "first_sample_idx": first}
    outputs.edit_manifest(tmp_path, lambda document: whole_run(document, end, dataset=dataset))
    assert outputs.findings(tmp_path) == findings


def test_hosts_that_share_a_shard_of_a_dataset_have_gaps_by_nature(tmp_path):
    outputs.write(tmp_path, outputs.three_shards()[1:], outputs.shard_format())
    dataset = {"part": "shard_001", "first_sample_idx": 0, "machine_id": 1, "total_machines": 2}
    outputs.edit_manifest(tmp_path, lambda document: whole_run(document, 9, dataset=dataset))
    assert outputs.findings(tmp_path) == []
