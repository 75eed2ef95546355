"""Every token once, in an order that a seed decides, however it is dealt out and wherever it is
interrupted."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import outputs
import pytest
from clouds import BUCKET
from fakes.gcs import FakeGcs
from hypothesis import given
from hypothesis import strategies as st

from layertap import ActivationDataset
from layertap.core.columns import token_columns
from layertap.core.sample import Sample
from layertap.core.taps import Tap
from layertap.errors import DamageError, UsageError
from layertap.objects import open_store
from layertap.reader.batches import Batches
from layertap.reader.handover import Batch
from layertap.shards.form import ShardFormat
from layertap.shards.quantised import quantise
from layertap.shards.writer import ShardWriter

SITES = ("residual", "mlp")
FLAGS = {"first": 1, "special": 2, "sink": 4}
KINDS = ("safetensors", "pickle", "both")

Token = tuple[int, int]
"""A sample, by its place in the dataset, and a position in it."""


def sample(stream: str, index: int, tokens: int) -> Sample:
    """A sample with special tokens and sinks in it."""
    plain = replace(outputs.sample(index, tokens, SITES), task_id=f"{stream}{index}")
    rng = np.random.default_rng((index, ord(stream)))
    sinks = {tap: rng.choice([1, 1, 1, 1000], (tokens, 1)).astype(np.float32) for tap in plain.activations}
    activations = {tap: values * sinks[tap] for tap, values in plain.activations.items()}
    columns = token_columns(rng.integers(0, 9, tokens, np.int32), frozenset(outputs.SPECIAL_IDS))
    return replace(plain, columns=columns, activations=activations)


def write_streams(root: Path, kind: str, dtype: str = "float32") -> None:
    """Three workers' output, of 0, 3 and 4 shards, some samples longer than a piece, some of one
    token."""
    lengths = {"a": [], "b": [[5, 1], [9], [3, 2, 4]], "c": [[1], [7, 7], [2], [6, 1]]}
    for worker, (stream, shards) in enumerate(lengths.items()):
        name = ("safetensors", "pickle")[worker % 2] if kind == "both" else kind
        form = outputs.shard_format(SITES, dtype=dtype, name=name)
        manifest = outputs.manifest(form, worker_id=worker, config={"dataset_path": f"{stream}.jsonl"})
        writer = ShardWriter(open_store(str(root / f"tpu_{worker}")), manifest, form, lambda _: None)
        index = 0
        for tokens in shards:
            writer.commit([sample(stream, index + n, length) for n, length in enumerate(tokens)], {}, complete=False)
            index += len(tokens)
        writer.commit([], {}, complete=True)


@pytest.fixture(scope="session")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("streams")
    for kind in KINDS:
        write_streams(folder / kind, kind)
    return {kind: folder / kind for kind in KINDS}


@pytest.fixture(scope="session")
def datasets(roots: dict[str, Path]) -> dict[str, ActivationDataset]:
    return {kind: ActivationDataset(root) for kind, root in roots.items()}


def tokens_of(batches: Iterator[Batch] | Batches | Sequence[Batch]) -> list[Token]:
    return [pair for batch in batches for pair in zip(batch.samples.tolist(), batch.positions.tolist(), strict=True)]


def runs_of(dataset: ActivationDataset, taps: Sequence[Tap], exclude: Sequence[str], length: int) -> list[list[Token]]:
    """Return what an epoch of runs should hold by the contract, from the samples alone."""
    tokens, runs = wanted(dataset, taps, exclude), list[list[Token]]()
    stretch: list[Token] = []
    for token in tokens:
        if stretch and token != (stretch[-1][0], stretch[-1][1] + 1):
            stretch = []
        stretch.append(token)
        if len(stretch) == length:
            runs.append(stretch)
            stretch = []
    return runs


def wanted(dataset: ActivationDataset, taps: Sequence[Tap], exclude: Sequence[str]) -> list[Token]:
    """Return what an epoch should hold by the contract, from the samples alone."""
    bits = sum(FLAGS[flag] for flag in exclude)
    found = []
    for number, one in enumerate(dataset):
        flags = np.bitwise_or.reduce([one.flags(*tap) for tap in taps])
        found += [(number, position) for position in range(len(one)) if not flags[position] & bits]
    return found


def require_true(dataset: ActivationDataset, batches: Batches, batch: Batch) -> None:
    """Require that every row holds what its sample holds there."""
    for row, (number, position) in enumerate(tokens_of([batch])):
        one = dataset[number]
        assert batch.token_ids[row] == one.token_ids[position]
        for column, tap in enumerate(batches.taps):
            np.testing.assert_array_equal(batch.activations[row, column], one.activation(*tap)[position])


def as_bytes(batch: Batch) -> tuple[bytes, ...]:
    return tuple(array.tobytes() for array in (batch.activations, batch.token_ids, batch.samples, batch.positions))


configurations = st.fixed_dictionaries(
    {
        "batch_size": st.integers(1, 40),
        "exclude": st.sets(st.sampled_from(sorted(FLAGS))),
        "layers": st.sampled_from([(0,), (2,), (2, 0), None]),
        "sites": st.sampled_from([("residual",), ("mlp", "residual"), None]),
        "shuffle": st.booleans(),
        "seed": st.integers(0, 5),
        "pool_tokens": st.integers(1, 60),
        "piece_tokens": st.integers(1, 12),
    }
)


@given(kind=st.sampled_from(KINDS), world_size=st.integers(1, 9), config=configurations)
def test_every_token_comes_once_over_all_ranks(
    datasets: dict[str, ActivationDataset], kind: str, world_size: int, config: dict[str, Any]
) -> None:
    dataset = datasets[kind]
    ranks = [dataset.batches(rank=rank, world_size=world_size, **config) for rank in range(world_size)]
    epochs = [list(batches) for batches in ranks]
    dealt = [tokens_of(epoch) for epoch in epochs]
    expected = wanted(dataset, ranks[0].taps, sorted(config["exclude"]))
    assert Counter(token for tokens in dealt for token in tokens) == Counter(expected)
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
    for batches, epoch in zip(ranks, epochs, strict=True):
        assert len(epoch) == len(batches)
        assert all(len(batch) == config["batch_size"] for batch in epoch[:-1])
        for batch in epoch:
            require_true(dataset, batches, batch)
    if not config["shuffle"]:
        assert [token for tokens in dealt for token in tokens] == expected


more_of_it = st.fixed_dictionaries(
    {
        "drop_last": st.booleans(),
        "sequence": st.sampled_from([None, None, 1, 2, 3]),
        "center": st.booleans(),
        "scale": st.sampled_from([None, "unit_rms", "sqrt_d"]),
    }
)


@pytest.mark.whole
@given(st.sampled_from(KINDS), st.integers(1, 4), configurations, more_of_it, st.data())
def test_resumed_anywhere_it_goes_on_byte_for_byte(
    datasets: dict[str, ActivationDataset],
    kind: str,
    world_size: int,
    config: dict[str, Any],
    more: dict[str, Any],
    data: st.DataObject,
) -> None:
    more |= {"world_size": world_size, "rank": data.draw(st.integers(0, world_size - 1))}
    config |= {"batch_size": config["batch_size"] * (more["sequence"] or 1)}

    def fresh() -> Batches:
        return datasets[kind].batches(**config, **more)

    undisturbed = fresh()
    whole = [as_bytes(batch) for _ in range(2) for batch in undisturbed]
    stop = data.draw(st.integers(0, len(whole)))
    first = fresh()
    seen = [as_bytes(batch) for batch in islice(_endless(first), stop)]
    resumed = fresh()
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    while resumed.epoch < 2:
        seen += [as_bytes(batch) for batch in resumed]
    assert seen == whole


def runs_in(batches: Batches) -> list[list[Token]]:
    """The runs of what is left of an epoch."""
    return [
        [(number, position) for position in positions]
        for batch in batches
        for number, positions in zip(batch.samples.tolist(), batch.positions.tolist(), strict=True)
    ]


@pytest.mark.whole
@given(st.sampled_from(KINDS), st.integers(1, 4), st.integers(1, 4), st.integers(1, 9), configurations)
def test_every_run_comes_once_over_all_ranks(
    datasets: dict[str, ActivationDataset], kind: str, length: int, runs: int, world_size: int, config: dict[str, Any]
) -> None:
    dataset, asked = datasets[kind], config | {"sequence": length, "batch_size": length * runs}
    ranks = [dataset.batches(rank=rank, world_size=world_size, **asked) for rank in range(world_size)]
    dealt = [runs_in(batches) for batches in ranks]
    taps, exclude = ranks[0].taps, sorted(config["exclude"])
    expected = runs_of(dataset, taps, exclude, length)
    assert Counter(map(tuple, [run for share in dealt for run in share])) == Counter(map(tuple, expected))
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
    if not config["shuffle"]:
        assert [run for share in dealt for run in share] == expected
    for batches, share in zip(ranks, dealt, strict=True):
        assert len(batches) == -(-len(share) // runs)
        assert batches.left_over == len(wanted(dataset, taps, exclude)) - length * len(expected)
        for batch in batches:
            assert batch.activations.shape == (len(batch), length, len(taps), outputs.HIDDEN)
            assert batch.token_ids.shape == (len(batch), length)
            for row, number in enumerate(batch.samples.tolist()):
                one, places = dataset[number], batch.positions[row]
                assert batch.token_ids[row].tolist() == one.token_ids[places].tolist()
                for column, tap in enumerate(taps):
                    np.testing.assert_array_equal(batch.activations[row, :, column], one.activation(*tap)[places])


def _endless(batches: Batches) -> Iterator[Batch]:
    while True:
        yield from batches


def test_runs_of_one_token_are_tokens(datasets: dict[str, ActivationDataset]) -> None:
    asked = {"seed": 3, "exclude": {"sink"}}
    runs, tokens = (list(datasets["safetensors"].batches(4, sequence=own, **asked)) for own in (1, None))
    assert Counter(token for batch in runs for token in zip(batch.samples, batch.positions[:, 0], strict=True)) == (
        Counter(token for batch in tokens for token in zip(batch.samples, batch.positions, strict=True))
    )


def test_runs_depend_on_neither_pieces_nor_what_is_read_at_once(datasets: dict[str, ActivationDataset]) -> None:
    found = [
        sorted(runs_in(datasets[kind].batches(6, sequence=3, piece_tokens=tokens, pool_tokens=18)))
        for kind in KINDS
        for tokens in (1, 4, 1000)
    ]
    assert found == [found[0]] * len(found)
    assert found[0] == sorted(runs_of(datasets["both"], (Tap(0, "residual"),), [], 3))


def test_runs_of_tokens_that_were_not_all_kept_follow_each_other(tmp_path: Path) -> None:
    form = outputs.shard_format(name="safetensors")
    whole = outputs.sample(0, 12)
    kept = np.array([0, 1, 2, 4, 5, 6, 7, 8, 11])
    some = replace(
        whole,
        columns={name: values[kept] for name, values in whole.columns.items()},
        activations={tap: values[kept] for tap, values in whole.activations.items()},
    )
    writer = ShardWriter(
        open_store(str(tmp_path)),
        outputs.manifest(form, identity={"storage": {"keep_tokens": ["cells"]}}),
        form,
        lambda _: None,
    )
    writer.commit([some], {}, complete=True)
    batches = ActivationDataset(tmp_path).batches(4, sequence=2, shuffle=False)
    assert [positions for batch in batches for positions in batch.positions.tolist()] == [[0, 1], [4, 5], [6, 7]]
    assert batches.left_over == 3


PAIRED = Tap(2, "mlp")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("framework", ["numpy", "torch", "jax"])
@pytest.mark.parametrize("sequence", [None, 2])
def test_inputs_and_targets_are_the_taps_that_were_named(
    datasets: dict[str, ActivationDataset], kind: str, framework: Any, sequence: int | None
) -> None:
    dataset = datasets[kind]
    asked = {"exclude": {"sink"}, "as_": framework, "sequence": sequence, "seed": 1}
    one = dataset.batches(6, inputs=("residual", 0), targets=("mlp", 2), **asked)
    several = dataset.batches(6, inputs=[("residual", 0), ("mlp", 2)], targets=[("mlp", 2)], **asked)
    assert one.taps == several.taps == (Tap(0, "residual"), PAIRED)
    for batch, other in zip(one, several, strict=True):
        rows = (len(batch),) if sequence is None else (len(batch), sequence)
        assert batch.inputs.shape == batch.targets.shape == (*rows, outputs.HIDDEN)
        assert (other.inputs.shape, other.targets.shape) == ((*rows, 2, outputs.HIDDEN), (*rows, 1, outputs.HIDDEN))
        np.testing.assert_array_equal(np.asarray(other.inputs)[..., 0, :], np.asarray(batch.inputs))
        np.testing.assert_array_equal(np.asarray(other.inputs)[..., 1, :], np.asarray(batch.targets))
        places = np.broadcast_to(batch.samples.reshape(-1, *[1] * (len(rows) - 1)), rows)
        for place in np.ndindex(*rows):
            held = dataset[int(places[place])]
            for side, tap in ((batch.inputs, one.taps[0]), (batch.targets, PAIRED)):
                expected = held.activation(*tap)[batch.positions[place]]
                np.testing.assert_array_equal(np.asarray(side)[place], expected)
        with pytest.raises(UsageError, match=r"use batch\.inputs and batch\.targets"):
            _ = batch.activations


def test_inputs_and_targets_may_differ_in_width_and_have_maps_of_their_own(tmp_path: Path) -> None:
    widths = {Tap(0, "residual"): 4, Tap(2, "residual"): 4, Tap(0, "mlp"): 6, Tap(2, "mlp"): 6}
    form = ShardFormat(widths, np.dtype(np.float32), compress=True, name="safetensors")
    outputs.write(tmp_path, outputs.three_shards(widths=widths), form)
    dataset = ActivationDataset(tmp_path)
    batches = dataset.batches(5, inputs=("residual", 0), targets=("mlp", 2), center=True, scale="unit_rms")
    assert batches.normalisation is not None
    for batch in batches:
        for side, tap in ((batch.inputs, Tap(0, "residual")), (batch.targets, Tap(2, "mlp"))):
            own = batches.normalisation[tap]
            plain = [dataset[int(n)].activation(*tap)[p] for n, p in zip(batch.samples, batch.positions, strict=True)]
            np.testing.assert_allclose(side, (plain - own.mean) * own.factor, rtol=1e-5, atol=1e-5)
    several = next(iter(dataset.batches(5, inputs=[("mlp", 0), ("mlp", 2)], targets=[("mlp", 0), ("residual", 0)])))
    assert several.inputs.shape == (5, 2, 6)
    assert {tap: side.shape for tap, side in several.targets.items()} == {
        Tap(0, "mlp"): (5, 6),
        Tap(0, "residual"): (5, 4),
    }


def test_a_crosscoder_gets_all_layers_in_one_array(datasets: dict[str, ActivationDataset]) -> None:
    dataset = datasets["safetensors"]
    batches = dataset.batches(8, sites=["residual"])
    assert batches.taps == (Tap(0, "residual"), Tap(2, "residual"))
    for batch in batches:
        assert batch.activations.shape == (len(batch), 2, outputs.HIDDEN)
        require_true(dataset, batches, batch)


@given(st.sampled_from(KINDS), st.integers(1, 9), st.sampled_from([None, 1, 2]), configurations)
def test_with_drop_last_all_ranks_have_as_many_whole_batches(
    datasets: dict[str, ActivationDataset], kind: str, world_size: int, sequence: int | None, config: dict[str, Any]
) -> None:
    rows, config = config["batch_size"], config | {"batch_size": config["batch_size"] * (sequence or 1)}
    ranks = [
        datasets[kind].batches(rank=rank, world_size=world_size, drop_last=True, sequence=sequence, **config)
        for rank in range(world_size)
    ]
    epochs = [list(batches) for batches in ranks]
    there = runs_of(datasets[kind], ranks[0].taps, sorted(config["exclude"]), sequence or 1)
    steps = len(there) // (world_size * rows)
    assert [len(epoch) for epoch in epochs] == [len(batches) for batches in ranks] == [steps] * world_size
    assert {len(batch) for epoch in epochs for batch in epoch} <= {rows}
    firsts = [
        (number, position)
        for epoch in epochs
        for batch in epoch
        for number, position in zip(batch.samples.tolist(), batch.positions.reshape(rows, -1)[:, 0], strict=True)
    ]
    assert len(set(firsts)) == len(firsts)


@pytest.mark.parametrize("kind", KINDS)
def test_seeds_and_epochs_differ(datasets: dict[str, ActivationDataset], kind: str) -> None:
    one, other = (datasets[kind].batches(8, seed=seed) for seed in (0, 1))
    orders = [tokens_of(one), tokens_of(one), tokens_of(other)]
    assert len({tuple(order) for order in orders}) == 3
    assert tokens_of(datasets[kind].batches(8, seed=1)) == orders[2]


def test_the_order_does_not_depend_on_where_files_lie(roots: dict[str, Path], gcs: FakeGcs) -> None:
    root = roots["both"]
    for path in root.rglob("*.*"):
        gcs.put(BUCKET, f"a/{path.relative_to(root).as_posix()}", path.read_bytes())
    asked = {"batch_size": 5, "piece_tokens": 3, "pool_tokens": 15, "exclude": {"sink"}}
    here, there = ActivationDataset(root).batches(**asked), ActivationDataset(f"gs://{BUCKET}/a").batches(**asked)
    batch = next(iter(here))
    assert as_bytes(batch) == as_bytes(next(iter(there)))
    there.load_state_dict(here.state_dict())
    assert tokens_of(there) == tokens_of(here)


def test_a_pool_mixes_pieces_of_the_whole_dataset(tmp_path: Path) -> None:
    form = outputs.shard_format(name="safetensors")
    outputs.write(tmp_path, [[outputs.sample(index, 100)] for index in range(20)], form)
    batch = next(iter(ActivationDataset(tmp_path).batches(200, pool_tokens=400, piece_tokens=10)))
    assert len(set(batch.samples.tolist())) > 12
    assert np.count_nonzero(np.diff(batch.positions) == 1) < 20


def test_a_rank_fetches_its_own_share_and_no_whole_shard(tmp_path: Path, gcs: FakeGcs) -> None:
    shards = [[outputs.sample(2 * n, 20_000), outputs.sample(2 * n + 1, 20_000)] for n in range(3)]
    outputs.write(tmp_path, shards, outputs.shard_format(name="safetensors"))
    for path in tmp_path.rglob("*.*"):
        gcs.put(BUCKET, f"a/{path.relative_to(tmp_path).as_posix()}", path.read_bytes())
    whole = sum(map(len, gcs.contents(BUCKET, "a/shard_").values()))
    dataset = ActivationDataset(f"gs://{BUCKET}/a")
    batches = dataset.batches(1000, layers=[0], rank=1, world_size=10, shuffle=True)
    before = gcs.sent
    assert sum(map(len, batches)) == 12_000
    headers = 3 * (256 << 10)
    share = 12_000 * (outputs.HIDDEN * 4 + 4)
    assert gcs.sent - before < headers + 1.4 * share < whole / 2
    again = gcs.sent
    assert sum(map(len, batches)) == 12_000
    assert gcs.sent - again < 1.4 * share


def test_pickles_from_a_bucket_are_read_once_an_epoch(tmp_path: Path, gcs: FakeGcs) -> None:
    outputs.write(tmp_path, outputs.three_shards(), outputs.shard_format())
    for path in tmp_path.rglob("*.*"):
        gcs.put(BUCKET, f"a/{path.relative_to(tmp_path).as_posix()}", path.read_bytes())
    batches = ActivationDataset(f"gs://{BUCKET}/a").batches(2, pool_tokens=2)
    before = gcs.sent
    assert sum(map(len, batches)) == 23
    assert gcs.sent - before == sum(map(len, gcs.contents(BUCKET, "a/shard_").values()))


def test_in_order_local_batches_are_views_of_the_file(tmp_path: Path) -> None:
    outputs.write(tmp_path, [[outputs.sample(0, 64)]], outputs.shard_format(name="safetensors"))
    dataset = ActivationDataset(tmp_path)
    whole = dataset[0].activation(2)
    for framework in ("numpy", "torch"):
        batch = next(iter(dataset.batches(16, layers=[2], shuffle=False, as_=framework)))
        assert np.shares_memory(np.asarray(batch.activations), whole)
        assert batch.activations.shape == (16, 1, outputs.HIDDEN)


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("asked", [None, "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("framework", ["numpy", "torch", "jax"])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_dtype_as_every_array(tmp_path: Path, stored: str, asked: Any, framework: Any, shuffle: bool) -> None:
    outputs.write(tmp_path, outputs.three_shards(), outputs.shard_format(dtype=stored, name="safetensors"))
    dataset = ActivationDataset(tmp_path)
    for batch in dataset.batches(4, layers=[2, 0], as_=framework, dtype=asked):
        assert type(batch.activations).__module__.split(".")[0].rstrip("lib") in ("numpy", "torch", "jax")
        assert str(batch.activations.dtype).removeprefix("torch.") == (asked or stored)
        values = batch.activations.float().numpy() if framework == "torch" else np.asarray(batch.activations)
        for row, (number, position) in enumerate(tokens_of([batch])):
            stored_values = dataset[number].activation(2)[position]
            expected = stored_values.astype(ml_dtypes.bfloat16 if asked == "bfloat16" else asked or stored_values.dtype)
            np.testing.assert_array_equal(values[row, 0].astype(np.float32), expected.astype(np.float32))


@pytest.mark.parametrize(("stored", "framework"), [("float8_e4m3fn", "numpy"), ("int8", "torch"), ("int8", "jax")])
@pytest.mark.parametrize("asked", [None, "bfloat16"])
@pytest.mark.parametrize("shuffle", [True, False])
def test_codes_are_read_as_float32_or_what_was_asked_for(
    tmp_path: Path, stored: str, framework: str, asked: str | None, shuffle: bool
) -> None:
    form = outputs.shard_format(dtype=stored, name="safetensors")
    outputs.write(tmp_path, [[outputs.sample(number) for number in range(3)]], form)
    dataset, dtype = ActivationDataset(tmp_path), np.dtype(stored)
    assert dataset.dtypes == ("float32",)
    exact = {number: quantise(outputs.sample(number).activations[Tap(2, "residual")], dtype) for number in range(3)}
    for number, expected in exact.items():
        values = dataset[number].activation(2)
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, expected.values)
    for batch in dataset.batches(4, layers=[2], as_=framework, dtype=asked, shuffle=shuffle):
        assert str(batch.activations.dtype).removeprefix("torch.") == (asked or "float32")
        values = batch.activations.float().numpy() if framework == "torch" else np.asarray(batch.activations)
        for row, (number, position) in enumerate(tokens_of([batch])):
            expected = exact[number].values[position].astype(asked or "float32")
            np.testing.assert_array_equal(values[row, 0].astype(np.float32), expected.astype(np.float32))


def test_mixed_storage_dtypes_need_one_to_be_named(tmp_path: Path) -> None:
    for number, dtype in enumerate(("float32", "bfloat16")):
        form = outputs.shard_format(dtype=dtype, name="safetensors")
        outputs.write(tmp_path / str(number), [[outputs.sample(number)]], form)
    dataset = ActivationDataset(tmp_path)
    with pytest.raises(UsageError, match="is stored as bfloat16 and float32; choose one with dtype="):
        dataset.batches(4)
    assert [batch.activations.dtype for batch in dataset.batches(6, dtype="float32")] == [np.float32]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"rank": 2, "world_size": 2}, "ranks are 0 to 1"),
        ({"seed": -1}, "seed must not be negative"),
        ({"seed": 1.5}, r"seed=1\.5: give a whole number"),
        ({"batch_size": 4.0}, r"batch_size=4\.0: give a whole number"),
        ({"include": "cell"}, "include: cell is unknown; give"),
        ({"layers": []}, "at least one layer"),
        ({"layers": [0, 0]}, "given twice"),
        ({"layers": [1]}, "not layer 1"),
        ({"sites": ["attn"]}, "at attn"),
        ({"exclude": {"pad"}}, "exclude: pad is unknown; give first, special, prefix, sink"),
        ({"columns": ["flags"]}, "columns must include token_ids"),
        ({"columns": ["token_ids", "loss"]}, "columns: loss is unknown; give token_ids"),
        ({"sink_factor": 0.0}, "sink_factor must be positive"),
        ({"as_": "tf"}, "as_: tf is unknown; give numpy, torch, jax"),
        ({"dtype": "int8"}, "dtype: int8 is unknown; give"),
        ({"sequence": 0}, "sequence must be at least 1"),
        ({"sequence": 3}, "4 is not a multiple of sequence=3"),
        ({"inputs": ("mlp", 0)}, "inputs is only half .* give targets too"),
        ({"targets": ("mlp", 0)}, "targets is only half .* give inputs too"),
        ({"inputs": ("mlp", 0), "targets": ("mlp", 2), "layers": [0]}, "leave out layers and sites"),
        ({"inputs": ("mlp", 0), "targets": ("mlp", 1)}, "not layer 1 at mlp"),
        ({"inputs": (0, "mlp"), "targets": ("mlp", 2)}, "inputs: give a site and a layer"),
        ({"inputs": [], "targets": ("mlp", 2)}, "inputs: give a site and a layer"),
        ({"inputs": [("mlp", 0), ("mlp", 0)], "targets": ("mlp", 2)}, "inputs: a tap is given twice"),
    ],
)
def test_what_makes_no_sense_is_refused(
    datasets: dict[str, ActivationDataset], wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        datasets["both"].batches(**({"batch_size": 4} | wrong))


def test_a_state_is_good_for_what_it_was_made_of_alone(datasets: dict[str, ActivationDataset]) -> None:
    state = datasets["both"].batches(4, seed=1).state_dict()
    with pytest.raises(UsageError, match=r"another order.*\n  batch_size: 4 there, 5 now\n  seed: 1 there, 0 now$"):
        datasets["both"].batches(5).load_state_dict(state)
    with pytest.raises(UsageError, match="the state is from another dataset"):
        datasets["pickle"].batches(4, seed=1).load_state_dict(state)
    with pytest.raises(UsageError, match="has version None"):
        datasets["both"].batches(4).load_state_dict({})


@pytest.mark.parametrize("asked", [{}, {"shuffle": False}, {"center": True}], ids=str)
def test_what_float16_cannot_hold_is_refused(tmp_path: Path, asked: dict[str, Any]) -> None:
    sample = outputs.sample(0)
    for values in sample.activations.values():
        values[1, 0] = 70_000
    outputs.write(tmp_path, [[sample]], outputs.shard_format(dtype="bfloat16", name="safetensors"))
    dataset = ActivationDataset(tmp_path)
    with pytest.raises(UsageError, match=r"activation of .* is beyond what float16 holds"):
        list(dataset.batches(3, layers=[2], dtype="float16", **(asked | {"center": False})))
    found = list(dataset.batches(3, layers=[2], dtype="float16", exclude={"sink"}, **asked))
    assert all(np.isfinite(batch.activations).all() for batch in found)
    assert len(found) == 1


def test_a_state_is_json_whatever_numbers_were_given(datasets: dict[str, ActivationDataset]) -> None:
    given: dict[str, Any] = {"layers": np.array([0, 2]), "seed": np.int64(1), "pool_tokens": np.int32(64)}
    state = json.loads(json.dumps(datasets["both"].batches(np.int64(4), **given).state_dict()))
    plain = datasets["both"].batches(4, layers=[0, 2], seed=1, pool_tokens=64)
    plain.load_state_dict(state)  # refuses the state of other batches
    assert json.loads(json.dumps(plain.state_dict())) == state


def test_one_name_does_without_a_list(datasets: dict[str, ActivationDataset]) -> None:
    one = datasets["both"].batches(4, layers=2, sites="mlp", exclude="sink", include="cells")
    several = datasets["both"].batches(4, layers=[2], sites=["mlp"], exclude={"sink"}, include=["cells"])
    assert one.state_dict() == several.state_dict()
    assert one.taps == several.taps == ((2, "mlp"),)


def test_an_iterator_that_was_overtaken_says_so(datasets: dict[str, ActivationDataset]) -> None:
    batches = datasets["both"].batches(4)
    old = iter(batches)
    next(old)
    next(iter(batches))
    with pytest.raises(UsageError, match="another loop"):
        next(old)


def test_taps_of_several_widths_come_as_a_dict(tmp_path: Path) -> None:
    widths = {Tap(0, "residual"): 4, Tap(2, "residual"): 4, Tap(0, "mlp"): 6, Tap(2, "mlp"): 6}
    form = ShardFormat(widths, np.dtype(np.float32), compress=True)
    for name in ("pickle", "safetensors"):
        outputs.write(tmp_path / name, outputs.three_shards(widths=widths), replace(form, name=name))
        dataset = ActivationDataset(tmp_path / name)
        assert dataset.width(2, "mlp") == 6
        with pytest.raises(UsageError, match="its sites differ in width"):
            _ = dataset.hidden_size
        for shuffle in (False, True):
            for batch in dataset.batches(5, layers=[0], shuffle=shuffle, as_="torch"):
                assert {tap: tuple(values.shape) for tap, values in batch.activations.items()} == {
                    tap: (len(batch), widths[tap]) for tap in (Tap(0, "residual"), Tap(0, "mlp"))
                }
                for row, (number, position) in enumerate(zip(batch.samples, batch.positions, strict=True)):
                    for tap, values in batch.activations.items():
                        assert np.array_equal(values[row], dataset[int(number)].activation(*tap)[position])
            alike = next(iter(dataset.batches(5, sites=["mlp"], shuffle=shuffle)))
            assert alike.activations.shape == (5, 2, 6)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_bring_the_columns_that_are_asked_for(datasets: dict[str, ActivationDataset], kind: str) -> None:
    dataset = datasets[kind]
    for batch in dataset.batches(7, columns=["token_ids", "flags"]):
        assert set(batch.columns) == {"token_ids", "flags", "positions"}
        places = zip(batch.samples.tolist(), batch.positions.tolist(), strict=True)
        assert batch.columns["flags"].tolist() == [int(dataset[n].column("flags")[p]) for n, p in places]


@pytest.mark.parametrize("kind", KINDS)
def test_another_factor_finds_other_sinks(datasets: dict[str, ActivationDataset], kind: str) -> None:
    dataset = datasets[kind]
    counts = [sum(map(len, dataset.batches(8, exclude={"sink"}, sink_factor=factor))) for factor in (1.5, 10, 1e6)]
    assert counts[0] < counts[1] < counts[2] == dataset.tokens


def test_damage_ends_the_iteration_with_the_files_name(tmp_path: Path) -> None:
    outputs.write(tmp_path, outputs.three_shards(), outputs.shard_format(name="safetensors"))
    (tmp_path / "shard_0002.safetensors").unlink()
    with pytest.raises(DamageError, match=r"shard_0002\.safetensors: missing"):
        list(ActivationDataset(tmp_path).batches(4))


def test_a_dataset_without_tokens_has_no_batches(tmp_path: Path) -> None:
    form = outputs.shard_format(name="safetensors")
    ShardWriter(open_store(str(tmp_path)), outputs.manifest(form), form, lambda _: None).commit([], {}, complete=True)
    for shuffle in (True, False):
        batches = ActivationDataset(tmp_path).batches(4, shuffle=shuffle)
        assert (len(batches), list(batches), batches.epoch) == (0, [], 1)
