"""What `verify` finds in shards whose size and checksum match the manifest."""

import numpy as np
import outputs
import pytest

from layertap.check.verify import verify
from layertap.core.columns import COLUMNS
from layertap.core.taps import Tap
from layertap.objects import open_store
from layertap.shards.manifest import fingerprint_of
from layertap.shards.writer import ShardWriter

FIRST, SECOND, THIRD = (f"shard_000{number}.pkl.gz" for number in (1, 2, 3))


def test_a_sample_in_two_shards_is_found(folder):
    twice = outputs.three_shards()[0][1]
    outputs.write(folder, [outputs.three_shards()[0], [twice, *outputs.three_shards()[1]]], outputs.shard_format())
    (folder / THIRD).unlink()
    (folder / "statistics" / "shard_0003.safetensors").unlink()
    assert outputs.the_finding(folder) == "sample 1 is in shard 1 and in shard 2"


def test_a_sample_twice_in_one_shard_is_found(tmp_path):
    outputs.write(tmp_path, [[outputs.sample(3), outputs.sample(3)]], outputs.shard_format())
    assert outputs.the_finding(tmp_path) == "sample 3 is in shard 1 and in shard 1"


def test_every_shard_that_repeats_a_long_range_is_found(tmp_path):
    everything = [outputs.sample(index) for index in range(6)]
    outputs.write(tmp_path, [everything, everything[1:2], everything[4:5]], outputs.shard_format())
    assert outputs.findings(tmp_path) == [
        "sample 1 is in shard 1 and in shard 2",
        "sample 4 is in shard 1 and in shard 3",
    ]


def test_another_dtype_is_found(folder):
    def narrow(shard):
        shard[0][0]["activation"] = shard[0][0]["activation"].astype(np.float16)

    outputs.rewrite(folder, SECOND, narrow)
    assert outputs.the_finding(folder).startswith(f"{SECOND}: layer 0, sample 2: activation is float16 [3, 4]")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_number_that_is_none_is_found(tmp_path, value, dtype):
    samples = outputs.three_shards()[0]
    samples[1].activations[Tap(2, "residual")][4, 3] = value
    outputs.write(tmp_path, [samples], outputs.shard_format(dtype=dtype, keep_nonfinite=True))
    assert outputs.findings(tmp_path) == []
    outputs.edit_manifest(tmp_path, lambda document: document["shards"][0].pop("nonfinite"))
    assert outputs.the_finding(tmp_path) == f"{FIRST}: layer 2, sample 1: activation has a NaN or an infinity"


def test_a_signalling_nan_in_bfloat16_is_found_without_a_warning(tmp_path):
    dtype = outputs.shard_format(dtype="bfloat16").dtype
    samples = outputs.three_shards()[0]
    for sample in samples:
        for tap, activation in sample.activations.items():
            sample.activations[tap] = activation.astype(dtype)
    samples[0].activations[Tap(0, "residual")].view(np.uint16)[0, 0] = 0x7F81
    outputs.write(tmp_path, [samples], outputs.shard_format(dtype="bfloat16", keep_nonfinite=True))
    outputs.edit_manifest(tmp_path, lambda document: document["shards"][0].pop("nonfinite"))
    assert outputs.the_finding(tmp_path) == f"{FIRST}: layer 0, sample 0: activation has a NaN or an infinity"


def test_another_number_of_kept_nans_than_the_manifest_says_is_found(tmp_path):
    samples = outputs.three_shards()[0]
    samples[1].activations[Tap(2, "residual")][2:4] = np.nan
    outputs.write(tmp_path, [samples], outputs.shard_format(keep_nonfinite=True))
    assert "; 2 activations have a NaN or an infinity, and were kept" in verify(tmp_path).describe()
    outputs.rewrite(tmp_path, FIRST, lambda shard: shard[0][0]["activation"].__setitem__(0, np.inf))
    assert "norm of token 0 is" in outputs.the_finding(tmp_path)
    outputs.rewrite(tmp_path, FIRST, lambda shard: shard[0][0]["norms"].__setitem__(0, np.inf))
    assert outputs.the_finding(tmp_path) == "shard 1: 3 activations have a NaN or an infinity, should be 2"


def lose_a_token(entry):
    for name in ("activation", "norms", *COLUMNS):
        entry[name] = entry[name][:-1]
    entry.update(shape=entry["activation"].shape)


def each(shard, number):
    """The entries of one sample, at all layers."""
    return [entries[number] for entries in shard.values()]


def test_a_lost_token_is_found(folder):
    outputs.rewrite(folder, SECOND, lambda shard: [lose_a_token(entry) for entry in each(shard, 1)])
    assert outputs.the_finding(folder) == f"{SECOND}: holds 6 tokens, should hold 7"


def test_tokens_that_do_not_fit_the_activation_are_found(folder):
    outputs.rewrite(folder, FIRST, lambda shard: shard[2][1].update(activation=np.zeros((4, 4), np.float32)))
    assert "sample 1: activation is float32 [4, 4]" in outputs.the_finding(folder)


def test_a_wrong_shape_field_is_found(folder):
    outputs.rewrite(folder, FIRST, lambda shard: shard[2][0].update(shape=(4, 3)))
    assert "sample 0: activation is float32 [3, 4], with shape=[4, 3]" in outputs.the_finding(folder)


def change_a_token(entry):
    entry["token_ids"][0] += 1


@pytest.mark.parametrize(
    "change",
    [change_a_token, lambda entry: entry.update(task_id="other"), lambda entry: entry.update(sample_idx=77)],
    ids=["token", "task", "index"],
)
def test_layers_that_disagree_about_a_sample_are_found(folder, change):
    outputs.rewrite(folder, SECOND, lambda shard: change(shard[2][1]))
    expected = f"{SECOND}, layer 2: has other samples, task ids or columns than {SECOND}, layer 0"
    assert outputs.the_finding(folder) in (expected, f"{SECOND}: layer 2 holds other samples or tokens than layer 0")


def test_sites_that_disagree_about_token_ids_are_found(two_sites):
    name = f"mlp/{THIRD}"
    outputs.rewrite(two_sites, name, lambda shard: [change_a_token(entry) for entry in each(shard, 0)])
    reference = f"residual/{THIRD}, layer 0"
    assert outputs.findings(two_sites) == [
        f"{name}, layer {layer}: has other samples, task ids or columns than {reference}" for layer in outputs.LAYERS
    ]


def test_samples_in_another_order_at_one_layer_are_found(folder):
    outputs.rewrite(folder, FIRST, lambda shard: shard[2].reverse())
    assert outputs.the_finding(folder) == f"{FIRST}: layer 2 holds other samples or tokens than layer 0"


def test_a_missing_layer_is_found(folder):
    outputs.rewrite(folder, FIRST, lambda shard: shard.pop(2))
    assert outputs.the_finding(folder) == f"{FIRST}: holds layers [0], should hold [0, 2]"


def test_a_missing_sample_is_found(folder):
    outputs.rewrite(folder, FIRST, lambda shard: [entries.pop(0) for entries in shard.values()])
    assert outputs.the_finding(folder) == f"{FIRST}: holds samples 1, should hold 0 to 1"


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (lambda shard: shard.update({0: {"entries": 1}}), "layer 0 is not a number with a list of samples"),
        (lambda shard: shard.update({0: None}), "layer 0 is not a number with a list of samples"),
        (lambda shard: shard[2].append("entry"), "layer 2, entry 2 is a str, not a dict"),
        (lambda shard: shard[0][1].pop("activation"), "layer 0, entry 1: activation is missing"),
        (lambda shard: shard[0][1].pop("sample_idx"), "layer 0, entry 1: sample_idx is missing"),
        (lambda shard: shard[0][1].update(activation=[[1.0]]), "layer 0, entry 1: activation is missing or not"),
        (lambda shard: shard[0][1].update(activation=np.zeros(1, "<c8")), "'<c8'"),
        (lambda shard: shard[0][1].update(shape=None), "layer 0, entry 1: shape is missing"),
        (lambda shard: shard[0][1].update(token_ids=None), "layer 0, entry 1: token_ids is missing"),
    ],
)
def test_malformed_content_is_a_finding_and_no_traceback(folder, edit, complaint):
    outputs.rewrite(folder, SECOND, edit)
    assert outputs.the_finding(folder).startswith(f"{SECOND}: cannot be read as a shard: ")
    assert complaint in outputs.the_finding(folder)


@pytest.mark.parametrize("garbage", [b"", b"\x1f\x8b", b"not a pickle", b"\x80\x05]."])
def test_a_file_that_is_no_shard_is_a_finding_and_no_traceback(folder, garbage):
    (folder / SECOND).write_bytes(garbage)
    outputs.believe(folder, SECOND)
    assert outputs.the_finding(folder).startswith(f"{SECOND}: cannot be read as a shard: ")


@pytest.mark.parametrize(
    "activation", [np.zeros((), np.float32), np.zeros(3, np.float32), np.zeros((0, 4), np.float32)]
)
def test_an_activation_of_any_shape_is_a_finding_and_no_traceback(folder, activation):
    outputs.rewrite(folder, SECOND, lambda shard: shard[0][0].update(activation=activation))
    finding = outputs.the_finding(folder)
    assert finding.startswith(f"{SECOND}: layer 0, sample 2: activation is float32 {list(activation.shape)},")


@pytest.mark.parametrize("edit", [lambda norms: norms.__setitem__(1, 9), lambda norms: norms.__imul__(1.001)])
def test_norms_that_are_not_those_of_the_activations_are_found(folder, edit):
    outputs.rewrite(folder, SECOND, lambda shard: edit(shard[2][1]["norms"]))
    assert outputs.the_finding(folder).startswith(f"{SECOND}: layer 2, sample 3: norm of token ")


def test_norms_of_another_type_or_length_are_found(folder):
    outputs.rewrite(folder, SECOND, lambda shard: shard[2][1].update(norms=shard[2][1]["norms"][1:]))
    assert outputs.the_finding(folder) == f"{SECOND}: layer 2, sample 3: norms are missing or not one float32 a token"


@pytest.fixture
def kept(tmp_path):
    """A run that keeps cells. Each of its two samples has six tokens, and keeps the second, third
    and fifth. The second sample also keeps the first.
    """
    samples = []
    for index, rows in enumerate(([1, 2, 4], [0, 1, 2, 4])):
        sample = outputs.sample(index, tokens=6)
        for name, value in {"example": 0, "side": 1, "row": 2, "col": 3, "colours": 5, "cells": 1}.items():
            sample.columns[name][[0, 1, 2, 4]] = value
        chosen = np.isin(np.arange(6), rows)
        samples.append(
            sample.only(chosen).with_activations({tap: it[chosen] for tap, it in sample.activations.items()})
        )
    form = outputs.shard_format()
    identity = {"layers": [0, 2], "storage": {"keep_tokens": ["cells"]}}
    manifest = outputs.manifest(form, identity=identity, fingerprint=fingerprint_of(identity))
    ShardWriter(open_store(str(tmp_path)), manifest, form, lambda _: None).commit(samples, {"record": 1}, complete=True)
    return tmp_path


def test_tokens_that_were_kept_are_sound_with_gaps_in_their_positions(kept):
    assert outputs.findings(kept) == []


@pytest.mark.parametrize(
    ("column", "row", "value", "complaint"),
    [
        ("positions", 2, 2, "positions do not ascend"),
        ("positions", 0, -1, "positions do not ascend"),
        ("flags", 0, 1, "flags of token 0 are 1, should be 0"),
        ("cells", 1, 0, "the token at position 2 is not in cells, but only these are kept"),
    ],
)
def test_what_was_not_to_be_kept_or_does_not_fit_is_found(kept, column, row, value, complaint):
    def edit(shard):
        for entry in each(shard, 0):
            entry[column][row] = value

    outputs.rewrite(kept, FIRST, edit)
    assert any(f"sample 0: {complaint}" in finding for finding in outputs.findings(kept))


@pytest.mark.parametrize("names", [["nothing known"], ["cells", "no_prefix"]])
def test_a_choice_that_labels_do_not_tell_ends_no_check(kept, names):
    def edit(document):
        document["identity"]["storage"]["keep_tokens"] = names
        document["fingerprint"] = fingerprint_of(document["identity"])

    outputs.edit_manifest(kept, edit)
    assert outputs.findings(kept) == []
