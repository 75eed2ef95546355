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
from layertap.reader.batches import Batch, Batches
from layertap.shards.encode import ShardFormat
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


def wanted(dataset: ActivationDataset, taps: Sequence[Tap], exclude: Sequence[str]) -> list[Token]:
    """What the contract says that an epoch holds, from the samples alone."""
    bits = sum(FLAGS[flag] for flag in exclude)
    found = []
    for number, one in enumerate(dataset):
        flags = np.bitwise_or.reduce([one.flags(*tap) for tap in taps])
        found += [(number, position) for position in range(len(one)) if not flags[position] & bits]
    return found


def require_true(dataset: ActivationDataset, batches: Batches, batch: Batch) -> None:
    """Every row holds what its sample holds there."""
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


@given(st.sampled_from(KINDS), st.integers(1, 4), st.booleans(), configurations, st.data())
def test_resumed_anywhere_it_goes_on_byte_for_byte(
    datasets: dict[str, ActivationDataset],
    kind: str,
    world_size: int,
    drop_last: bool,
    config: dict[str, Any],
    data: st.DataObject,
) -> None:
    more = {"world_size": world_size, "drop_last": drop_last, "rank": data.draw(st.integers(0, world_size - 1))}

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


def _endless(batches: Batches) -> Iterator[Batch]:
    while True:
        yield from batches


@given(kind=st.sampled_from(KINDS), world_size=st.integers(1, 9), config=configurations)
def test_with_drop_last_all_ranks_have_as_many_whole_batches(
    datasets: dict[str, ActivationDataset], kind: str, world_size: int, config: dict[str, Any]
) -> None:
    ranks = [
        datasets[kind].batches(rank=rank, world_size=world_size, drop_last=True, **config) for rank in range(world_size)
    ]
    epochs = [list(batches) for batches in ranks]
    tokens = len(wanted(datasets[kind], ranks[0].taps, sorted(config["exclude"])))
    steps = tokens // (world_size * config["batch_size"])
    assert [len(epoch) for epoch in epochs] == [len(batches) for batches in ranks] == [steps] * world_size
    assert {len(batch) for epoch in epochs for batch in epoch} <= {config["batch_size"]}
    assert max(Counter(token for epoch in epochs for token in tokens_of(epoch)).values(), default=1) == 1


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


def test_mixed_storage_dtypes_need_one_to_be_named(tmp_path: Path) -> None:
    for number, dtype in enumerate(("float32", "bfloat16")):
        form = outputs.shard_format(dtype=dtype, name="safetensors")
        outputs.write(tmp_path / str(number), [[outputs.sample(number)]], form)
    dataset = ActivationDataset(tmp_path)
    with pytest.raises(UsageError, match="is stored as bfloat16 and float32; give dtype="):
        dataset.batches(4)
    assert [batch.activations.dtype for batch in dataset.batches(6, dtype="float32")] == [np.float32]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"rank": 2, "world_size": 2}, "ranks are 0 to 1"),
        ({"seed": -1}, "seed must not be negative"),
        ({"layers": []}, "at least one layer"),
        ({"layers": [0, 0]}, "given twice"),
        ({"layers": [1]}, "not layer 1"),
        ({"sites": ["attn"]}, "at attn"),
        ({"exclude": {"pad"}}, "exclude: pad is none of first, special, sink"),
        ({"columns": ["flags"]}, "token_ids is one of them"),
        ({"columns": ["token_ids", "loss"]}, "columns: loss is none of token_ids"),
        ({"sink_factor": 0.0}, "sink_factor must be positive"),
        ({"as_": "tf"}, "as_: tf is none of numpy, torch, jax"),
        ({"dtype": "int8"}, "dtype: int8 is none of"),
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
    with pytest.raises(UsageError, match="the state is of another dataset"):
        datasets["pickle"].batches(4, seed=1).load_state_dict(state)
    with pytest.raises(UsageError, match="of version None"):
        datasets["both"].batches(4).load_state_dict({})


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
