"""From samples to the bytes of a shard, without the disk."""

from collections import Counter
from dataclasses import replace
from unittest.mock import Mock

import ml_dtypes  # noqa: F401 - numpy knows bfloat16 from here on
import numpy as np
import outputs
import pytest

from layertap.core.taps import Tap
from layertap.errors import StorageError
from layertap.shards import rounding
from layertap.shards.encode import encode
from layertap.shards.form import ShardFormat
from layertap.shards.rounding import round_activation
from layertap.shards.statistics_files import read_statistics

ABOUT = {"model_path": "m", "model_type": "qwen2", "fingerprint": "f" * 64}
THREE_SITES = outputs.shard_format(("residual", "mlp", "attn"))
TENSORS = outputs.shard_format(name="safetensors")
MIXED = {Tap(0, "residual"): 4, Tap(2, "residual"): 4, Tap(0, "mlp"): 6}


def content(encoded) -> dict[str, bytes]:
    return {path: b"".join(it.chunks()) for path, it in encoded.contents.items()}


def test_bytes_per_token_counts_every_layer_and_site():
    assert outputs.shard_format(dtype="float32").bytes_per_token == 2 * 1 * 4 * 4
    assert outputs.shard_format(("residual", "mlp", "attn"), "float16").bytes_per_token == 2 * 3 * 4 * 2
    assert ShardFormat(MIXED, np.dtype("float16"), compress=False).bytes_per_token == (4 + 4 + 6) * 2


@pytest.mark.parametrize(
    ("form", "index", "paths"),
    [
        (outputs.shard_format(), 1, {"shard_0001.pkl.gz": "residual"}),
        (outputs.shard_format(), 12345, {"shard_12345.pkl.gz": "residual"}),
        (outputs.shard_format(compress=False), 20, {"shard_0020.pkl": "residual"}),
        (THREE_SITES, 3, {f"{site}/shard_0003.pkl.gz": site for site in ("residual", "mlp", "attn")}),
        (TENSORS, 3, {"shard_0003.safetensors": None}),
        (outputs.shard_format(("mlp", "attn"), name="safetensors"), 12345, {"shard_12345.safetensors": None}),
    ],
)
def test_shards_are_named_by_number_and_by_what_they_hold(form, index, paths):
    assert form.files(index) == paths


def test_pickles_are_the_default():
    assert ShardFormat(outputs.taps(), np.dtype("float32"), compress=False).name == "pickle"


@pytest.mark.parametrize("form", [outputs.shard_format(), THREE_SITES, TENSORS], ids=["pickle", "sites", "tensors"])
def test_the_same_samples_give_the_same_bytes_and_are_left_as_they_were(form):
    samples = [outputs.sample(index, sites=form.sites) for index in range(2)]
    first, second = encode(1, samples, form, ABOUT), encode(1, samples, form, ABOUT)
    assert first.entry == second.entry
    assert content(first) == content(second)
    for index, sample in enumerate(samples):
        for tap, values in outputs.sample(index, sites=form.sites).activations.items():
            assert np.array_equal(sample.activations[tap], values)


def test_the_entry_tells_what_was_encoded():
    samples = [outputs.sample(4, tokens=3), outputs.sample(5, tokens=2), outputs.sample(9, tokens=1)]
    encoded = encode(7, samples, outputs.shard_format(), ABOUT)
    entry = encoded.entry
    assert (entry.index, entry.samples, entry.tokens, entry.sample_idx) == (7, 3, 6, ((4, 5), (9, 9)))
    assert [(file.path, file.kind, file.site) for file in entry.files] == [
        ("shard_0007.pkl.gz", "activations", "residual"),
        ("statistics/shard_0007.safetensors", "statistics", None),
    ]
    for file in entry.files:
        assert (file.bytes, file.crc32c) == (encoded.contents[file.path].size, encoded.contents[file.path].crc32c)
        assert file.bytes == len(content(encoded)[file.path])


@pytest.mark.parametrize("name", ["pickle", "safetensors"])
@pytest.mark.parametrize(
    ("given", "stored"), [("float32", "float16"), ("bfloat16", "float16"), ("bfloat16", "float32")]
)
def test_each_activation_is_converted_once(monkeypatch, name, given, stored):
    form = outputs.shard_format(dtype=stored, name=name)
    samples = [outputs.sample(index) for index in range(3)]
    as_given = [
        replace(one, activations={tap: values.astype(given) for tap, values in one.activations.items()})
        for one in samples
    ]
    asked = Counter()

    def counted(sample, tap, dtype, into, *, by_loops):
        asked[sample.sample_idx, tap] += 1
        return round_activation(sample, tap, dtype, into, by_loops=by_loops)

    monkeypatch.setattr(rounding, "round_activation", counted)
    looks = Mock(wraps=np.isfinite)
    monkeypatch.setattr(rounding.np, "isfinite", looks)  # whether what became infinite was finite before
    encode(1, as_given, form, ABOUT)
    assert asked == {(index, tap): 1 for index in range(3) for tap in form.taps}
    on_samples = [call for call in looks.call_args_list if call.args[0].ndim == 2]
    assert len(on_samples) == (len(asked) if stored == "float16" else 0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_storing_only_widens_is_not_copied(dtype):
    sample = outputs.sample(0)
    values = sample.activations[Tap(0, "residual")].astype(np.dtype(dtype))
    given = replace(sample, activations={Tap(0, "residual"): values})
    assert round_activation(given, Tap(0, "residual"), np.dtype("float32")) is values


@pytest.mark.parametrize("beside", [0.0, np.nan, np.inf])
@pytest.mark.parametrize("given", ["float32", "bfloat16"])
def test_a_value_too_large_for_float16_is_refused_with_its_sample_and_place(given, beside):
    sample = outputs.sample(41)
    sample.activations[Tap(2, "residual")][1, :2] = beside, -1e5
    as_given = replace(sample, activations={tap: it.astype(given) for tap, it in sample.activations.items()})
    with pytest.raises(
        StorageError, match=r"^task task20, sample 41, layer 2, residual: a value is too large for float16 \(65504\)"
    ):
        encode(1, [outputs.sample(0), as_given], outputs.shard_format(dtype="float16"), ABOUT)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_nan_is_refused_with_its_place_or_kept_and_counted(value, dtype):
    sample = outputs.sample(41, tokens=300)
    sample.activations[Tap(2, "residual")][[7, 200], 1] = value
    with pytest.raises(StorageError) as raised:
        encode(1, [outputs.sample(0), sample], outputs.shard_format(dtype=dtype), ABOUT)
    assert str(raised.value).startswith(
        "task task20, sample 41, layer 2, residual, token 7: the activation has a NaN or an infinity, as have those of"
        " 2 of its 300 tokens there."
    )
    assert "--on_nonfinite keep" in str(raised.value)
    form = outputs.shard_format(dtype=dtype, keep_nonfinite=True)
    encoded = encode(1, [outputs.sample(0), sample], form, ABOUT)
    assert encoded.entry.nonfinite == 2
    assert b'"nonfinite": 2' in encoded.entry.line
    assert b"nonfinite" not in encode(1, [outputs.sample(0)], form, ABOUT).entry.line
    statistics = read_statistics(content(encoded)["statistics/shard_0001.safetensors"], "statistics", form.taps)
    assert [row.count for row in statistics.values()] == [303, 301]
    assert all(
        np.isfinite([*row.mean, *row.m2, row.mean_square_norm, row.max_norm]).all() for row in statistics.values()
    )


@pytest.mark.parametrize(
    ("dtype", "kept"), [("int8", "such tokens of int8 as NaN"), ("float32", "such activations as")]
)
def test_a_nan_is_refused_with_how_it_would_be_stored(dtype, kept):
    sample = outputs.sample(41)
    sample.activations[Tap(2, "residual")][1, 1] = np.nan
    with pytest.raises(StorageError, match=f"To store {kept}"):
        encode(1, [sample], outputs.shard_format(dtype=dtype, name="safetensors"), ABOUT)


@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
def test_the_longest_token_is_named_by_its_position_in_the_prompt(dtype):
    whole, kept = outputs.sample(7, tokens=9), np.array([2, 5, 8])
    sample = whole.only(kept).with_activations({tap: values[kept] for tap, values in whole.activations.items()})
    for values in sample.activations.values():
        values[1] = 100
    form = outputs.shard_format(dtype=dtype, name="safetensors")
    written = content(encode(1, [sample], form, ABOUT))["statistics/shard_0001.safetensors"]
    statistics = read_statistics(written, "statistics", form.taps)
    assert {(row.max_sample_idx, row.max_position) for row in statistics.values()} == {(7, 5)}


def rounded(values: np.ndarray, dtype: str = "float16") -> np.ndarray:
    tap = Tap(0, "residual")
    sample = replace(outputs.sample(0, len(values)), activations={tap: values})
    return round_activation(sample, tap, np.dtype(dtype))


def test_the_largest_float16_fits_and_the_next_float32_does_not():
    border = np.array([[65519.996]], np.float32)  # the last float32 that rounds to 65504
    assert rounded(border).item() == 65504
    with pytest.raises(StorageError):
        rounded(np.nextafter(border, np.float32(np.inf)))


@pytest.mark.parametrize("given", ["float32", "bfloat16"])
def test_nan_and_infinity_pass_into_float16_unchanged(given):
    values = np.array([[np.nan, np.inf, -np.inf, 1.5]], np.float32)
    assert np.array_equal(rounded(values.astype(given)), values.astype(np.float16), equal_nan=True)


def test_statistics_and_norms_are_of_the_values_as_stored():
    tap = Tap(0, "residual")
    sample = replace(outputs.sample(5), activations={tap: np.full((3, 2), 1.001, np.float32)})
    form = ShardFormat({tap: 2}, np.dtype("bfloat16"), compress=False, name="safetensors")
    files = content(encode(1, [sample], form, ABOUT))
    statistics = read_statistics(files["statistics/shard_0001.safetensors"], "statistics", form.taps)
    assert statistics[tap].mean.tolist() == [1.0, 1.0]
    assert (statistics[tap].max_sample_idx, statistics[tap].max_position) == (5, 0)


def test_sites_of_other_widths_are_stored_side_by_side():
    samples = [outputs.sample(index, widths=MIXED) for index in range(2)]
    for name in ("pickle", "safetensors"):
        form = ShardFormat(MIXED, np.dtype("float32"), compress=False, name=name)
        encoded = encode(1, samples, form, ABOUT)
        statistics = read_statistics(content(encoded)["statistics/shard_0001.safetensors"], "statistics", MIXED)
        assert {tap: len(row.mean) for tap, row in statistics.items()} == MIXED
