"""A stream yields what a run would store: each token once, and after any interruption the rest."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import finished, out, small_run

import layertap
from layertap.api.pools import RunningModel
from layertap.api.stream import StreamBatches
from layertap.core.sample import Sample
from layertap.errors import BadTaskError, RunMismatchError, StorageError, UsageError
from layertap.pipeline.windows import Position
from layertap.reader.handover import Batch

SETTINGS: dict[str, Any] = {
    "predictions_per_task": 2,
    "prompt_version": "output-from-examples-v1",
    "row_length": 1024,
    "batch_size": 2,
    "max_seq_length": 4096,
    "window_samples": 10,
    "layers_to_extract": [1, 3],
}
Token = tuple[int, int]


@pytest.fixture
def stream(few_tasks: Path, tiny_model: Path) -> Iterator[layertap.ActivationStream]:
    stream = layertap.ActivationStream(dataset_path=few_tasks, model_path=tiny_model, **SETTINGS)
    yield stream
    if stream._latest is not None:
        stream._latest.close()
    stream.close()


@pytest.fixture(scope="module")
def stored(few_tasks: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> layertap.ActivationDataset:
    config = small_run(few_tasks, tiny_model, tmp_path_factory.mktemp("stored"), format="safetensors")
    finished(config)
    return layertap.ActivationDataset(out(config))


@dataclass(frozen=True, eq=False)
class Recorded(RunningModel):
    """A model that ran once over each rank's records, and then repeats its results."""

    runs: dict[tuple[int, int], list[tuple[Position, Sample]]] = field(default_factory=dict)

    def samples(self, start: Position, proceed: Any) -> Iterator[tuple[Position, Sample]]:
        rules = self.prompts.rules
        run = self.runs[rules.machine_id, rules.total_machines]
        behind = [position for position, _ in run]
        yield from run[0 if start == Position() else 1 + behind.index(start) :]


@pytest.fixture(scope="module")
def recorded(few_tasks: Path, tiny_model: Path) -> layertap.ActivationStream:
    """A stream whose model has run once for each rank of up to four."""
    stream = layertap.ActivationStream(dataset_path=few_tasks, model_path=tiny_model, **SETTINGS)
    model = stream._model
    shares = [(rank, ranks) for ranks in range(1, 5) for rank in range(ranks)]
    runs = {share: list(model.of_rank(*share).samples(Position(), lambda: None)) for share in shares}
    stream.close()
    stream._model = Recorded(model.session, model.opened, model.prompts, model.form, runs=runs)
    return stream


def tokens_of(batches: Iterator[Batch] | StreamBatches | Sequence[Batch]) -> list[Token]:
    return [
        (number, position)
        for batch in batches
        for number, positions in zip(batch.samples.tolist(), batch.positions.tolist(), strict=True)
        for position in (positions if isinstance(positions, list) else [positions])
    ]


def as_bytes(batch: Batch) -> tuple[bytes, ...]:
    return tuple(array.tobytes() for array in (batch.activations, batch.token_ids, batch.samples, batch.positions))


def test_in_order_it_is_the_stored_run_byte_for_byte(
    stream: layertap.ActivationStream, stored: layertap.ActivationDataset
) -> None:
    asked: dict[str, Any] = {"shuffle": False, "columns": ("token_ids", "role", "row", "flags")}
    ours, theirs = stream.batches(1000, **asked), stored.batches(1000, **asked)
    assert ours.taps == theirs.taps
    for mine, same in zip(ours, theirs, strict=True):
        assert as_bytes(mine) == as_bytes(same)
        for name in asked["columns"]:
            np.testing.assert_array_equal(mine.columns[name], same.columns[name])
    assert ours.count_batches() == len(theirs)


@pytest.mark.parametrize(
    "asked",
    [
        {"exclude": ["first", "special", "sink"]},
        {"include": {"cells"}, "exclude": {"sink"}, "sink_factor": 1.2},
        {"role": "user", "sequence": 4},
    ],
    ids=str,
)
def test_shuffled_it_has_the_tokens_of_the_stored_run(
    stream: layertap.ActivationStream, stored: layertap.ActivationDataset, asked: dict[str, Any]
) -> None:
    ours, theirs = (tokens_of(source.batches(256, pool_tokens=2048, **asked)) for source in (stream, stored))
    assert len(ours) > 1000
    assert Counter(ours) == Counter(theirs)
    assert ours != theirs


configurations = st.fixed_dictionaries(
    {
        "batch_size": st.integers(1, 60).map(lambda runs: 12 * runs),
        "exclude": st.sets(st.sampled_from(["first", "special", "sink"])),
        "layers": st.sampled_from([(1,), (3, 1), None]),
        "shuffle": st.booleans(),
        "seed": st.integers(0, 5),
        "pool_tokens": st.integers(1, 9000),
        "sequence": st.sampled_from([None, None, 1, 4]),
        "drop_last": st.booleans(),
    }
)

# An epoch of every rank takes a second: fewer of these than of others in `make test-slow`.
_FEWER = settings(max_examples=min(settings.default.max_examples, 50))


@pytest.mark.whole
@_FEWER
@given(world_size=st.integers(1, 4), config=configurations)
def test_every_token_comes_once_over_all_ranks(
    recorded: layertap.ActivationStream, world_size: int, config: dict[str, Any]
) -> None:
    config |= {"drop_last": False}
    ranks = [recorded.batches(rank=rank, world_size=world_size, **config) for rank in range(world_size)]
    epochs = [list(batches) for batches in ranks]
    alone = list(recorded.batches(**config))
    assert sum(len(tokens_of(epoch)) for epoch in epochs) == len(tokens_of(alone))
    for epoch in epochs:
        tokens = tokens_of(epoch)
        assert len(set(tokens)) == len(tokens)
        assert all(len(batch) == config["batch_size"] // (config["sequence"] or 1) for batch in epoch[:-1])
    held, whole = (Counter(rows(batches)) for batches in ([b for epoch in epochs for b in epoch], alone))
    assert held == whole
    if "sink" not in config["exclude"]:
        assert [batches.count_batches() for batches in ranks] == list(map(len, epochs))


def rows(batches: Sequence[Batch]) -> list[bytes]:
    """Return what identifies the rows.

    Each rank counts its own samples and packs them differently, so their numbers and the last bits
    of activations differ.
    """
    return [
        batch.token_ids[row].tobytes() + batch.positions[row].tobytes()
        for batch in batches
        for row in range(len(batch))
    ]


@pytest.mark.whole
@given(world_size=st.integers(1, 3), config=configurations, data=st.data(), center=st.booleans())
def test_resumed_anywhere_it_goes_on_byte_for_byte(
    recorded: layertap.ActivationStream, world_size: int, config: dict[str, Any], data: st.DataObject, center: bool
) -> None:
    config |= {"world_size": world_size, "rank": data.draw(st.integers(0, world_size - 1))}
    config |= {"center": center and world_size == 1}
    if "sink" in config["exclude"] and world_size > 1:
        config["drop_last"] = False
    undisturbed = recorded.batches(**config)
    whole = [as_bytes(batch) for _ in range(2) for batch in undisturbed]
    stop = data.draw(st.integers(0, len(whole)))
    first = recorded.batches(**config)
    seen = [as_bytes(batch) for batch in islice(_endless(first), stop)]
    state = json.loads(json.dumps(first.state_dict()))
    first.close()
    resumed = recorded.batches(**config)
    resumed.load_state_dict(state)
    while resumed.epoch < 2:
        seen += [as_bytes(batch) for batch in resumed]
    assert seen == whole


def _endless(batches: StreamBatches) -> Iterator[Batch]:
    while True:
        yield from batches


@pytest.mark.whole
@_FEWER
@given(world_size=st.integers(2, 4), config=configurations)
def test_with_drop_last_all_ranks_have_as_many_whole_batches(
    recorded: layertap.ActivationStream, world_size: int, config: dict[str, Any]
) -> None:
    config |= {"drop_last": True, "exclude": config["exclude"] - {"sink"}}
    ranks = [recorded.batches(rank=rank, world_size=world_size, **config) for rank in range(world_size)]
    epochs = [list(batches) for batches in ranks]
    assert {len(epoch) for epoch in epochs} == {ranks[0].count_batches()}
    full = config["batch_size"] // (config["sequence"] or 1)
    assert all(len(batch) == full for epoch in epochs for batch in epoch)


@pytest.mark.whole
def test_the_model_itself_goes_on_byte_for_byte(stream: layertap.ActivationStream) -> None:
    asked: dict[str, Any] = {"pool_tokens": 1500, "exclude": {"first"}, "seed": 3}
    first = stream.batches(250, **asked)
    whole, states = [], []
    for batch in first:
        whole.append(as_bytes(batch))
        states.append(json.dumps(first.state_dict()))
    for at in (0, 5, 6, len(whole) // 2, len(whole) - 2, len(whole) - 1):
        resumed = stream.batches(250, **asked)
        resumed.load_state_dict(json.loads(states[at]))
        assert [as_bytes(batch) for batch in resumed] == whole[at + 1 :]
        assert resumed.epoch == 1


@pytest.mark.whole
def test_a_loop_that_was_left_goes_on(stream: layertap.ActivationStream) -> None:
    asked: dict[str, Any] = {"pool_tokens": 1500}
    whole = [as_bytes(batch) for batch in stream.batches(250, **asked)]
    batches = stream.batches(250, **asked)
    seen = [as_bytes(batch) for batch in islice(batches, 3)]
    seen += [as_bytes(batch) for batch in islice(batches, 4)]
    batches.close()
    assert seen + [as_bytes(batch) for batch in batches] == whole


def test_a_stream_has_no_codes() -> None:
    with pytest.raises(UsageError, match=r"storage_dtype='int8' saves bytes on disk, and a stream stores nothing"):
        layertap.ActivationStream(dataset_path="tasks.jsonl", storage_dtype="int8")


def test_a_loop_that_was_overtaken_says_so(recorded: layertap.ActivationStream) -> None:
    batches = recorded.batches(100)
    old = iter(batches)
    next(old)
    next(iter(batches))
    with pytest.raises(UsageError, match="another loop"):
        next(old)
    assert batches.state_dict()["batch"] == 2
    batches.close()


@dataclass(frozen=True, eq=False)
class _Interrupted(RunningModel):
    """A model that is interrupted once, as by Ctrl-C."""

    pending: list[type[BaseException]] = field(default_factory=lambda: [KeyboardInterrupt])

    def samples(self, start: Position, proceed: Any) -> Iterator[tuple[Position, Sample]]:
        for number, found in enumerate(super().samples(start, proceed)):
            if number == 3 and self.pending:
                raise self.pending.pop()
            yield found


@pytest.mark.whole
def test_after_an_interruption_a_later_loop_goes_on(stream: layertap.ActivationStream) -> None:
    asked: dict[str, Any] = {"pool_tokens": 500, "seed": 2}
    whole = [as_bytes(batch) for batch in stream.batches(250, **asked)]
    model = stream._model
    stream._model = _Interrupted(model.session, model.opened, model.prompts, model.form)
    batches, seen = stream.batches(250, **asked), []
    with pytest.raises(KeyboardInterrupt):
        seen.extend(map(as_bytes, batches))
    assert 0 < len(seen) < len(whole)
    assert seen + [as_bytes(batch) for batch in batches] == whole


def test_after_a_task_was_repaired_the_same_batches_go_on(few_tasks: Path, tiny_model: Path, tmp_path: Path) -> None:
    lines = few_tasks.read_text().splitlines()
    path = tmp_path / "tasks.jsonl"
    path.write_text("\n".join([*lines[:2], "{}"]) + "\n")
    settings = SETTINGS | {"dataset_path": path, "model_path": tiny_model, "window_samples": 2}
    stream = layertap.ActivationStream(**settings)
    batches, seen = stream.batches(250, pool_tokens=500), []
    for _ in range(2):  # the same error each time
        with pytest.raises(BadTaskError):
            seen.extend(map(as_bytes, batches))
    path.write_text("\n".join(lines[:3]) + "\n")
    seen += [as_bytes(batch) for batch in batches]
    assert seen == [as_bytes(batch) for batch in stream.batches(250, pool_tokens=500)]
    stream.close()


class _Zeros(RunningModel):
    """A model that returns only zeros."""

    def samples(self, start: Position, proceed: Any) -> Iterator[tuple[Position, Sample]]:
        for position, sample in super().samples(start, proceed):
            yield position, replace(sample, activations={tap: 0 * own for tap, own in sample.activations.items()})


def test_a_pool_that_cannot_be_measured_is_never_handed_out_as_it_is(stream: layertap.ActivationStream) -> None:
    model = stream._model
    stream._model = _Zeros(model.session, model.opened, model.prompts, model.form)
    batches = stream.batches(250, scale="unit_rms", pool_tokens=500)
    for _ in range(2):
        with pytest.raises(UsageError, match="the size 0"):
            next(iter(batches))


@pytest.mark.whole
def test_the_state_of_a_stream_is_that_of_its_batches(stream: layertap.ActivationStream) -> None:
    batches = stream.batches(500)
    next(iter(batches))
    assert stream.state_dict() == batches.state_dict()
    assert len(json.dumps(stream.state_dict())) < 2000
    batches.close()
    fresh = layertap.ActivationStream(
        dataset_path=stream._model.prompts.records.args[0].dataset_path,  # type: ignore[attr-defined]
        model_path=stream.model_path,
        **SETTINGS,
    )
    fresh.load_state_dict(stream.state_dict())
    assert as_bytes(next(iter(fresh.batches(500)))) == as_bytes(next(iter(batches)))
    batches.close()
    fresh._latest.close()  # type: ignore[union-attr]
    fresh.close()


def test_frameworks_get_the_same_numbers(stream: layertap.ActivationStream) -> None:
    asked: dict[str, Any] = {"pool_tokens": 2000, "dtype": "float32"}
    batches = {as_: stream.batches(500, as_=as_, **asked) for as_ in ("numpy", "torch", "jax")}
    plain, torch, jax = (next(iter(one)).activations for one in batches.values())
    np.testing.assert_array_equal(plain, torch.numpy())
    np.testing.assert_array_equal(plain, np.asarray(jax))
    for one in batches.values():
        one.close()


@pytest.mark.whole
def test_it_is_normalised_by_its_first_pool(stream: layertap.ActivationStream) -> None:
    asked: dict[str, Any] = {"center": True, "scale": "unit_rms", "exclude": {"first"}}
    batches = stream.batches(500, pool_tokens=10_000, **asked)
    made = batches.normalisation
    assert made is not None
    assert made.measured == "the first 10000 tokens of the stream"
    pool = np.concatenate([batch.activations for batch in islice(batches, 20)])
    np.testing.assert_allclose(pool.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose((pool.astype(np.float64) ** 2).mean(axis=(0, 2)), 1, rtol=1e-4)
    state = json.loads(json.dumps(batches.state_dict()))
    batches.close()
    given = stream.batches(500, pool_tokens=10_000, exclude={"first"}, normalisation=made)
    given.load_state_dict(state)
    assert as_bytes(next(iter(given))) == as_bytes(next(iter(batches)))
    given.close()
    batches.close()
    other = stream.batches(500, pool_tokens=10_000, exclude={"first"})
    with pytest.raises(UsageError, match="with another normalisation"):
        other.load_state_dict(state)
    with pytest.raises(UsageError, match="each rank would estimate a different"):
        stream.batches(500, world_size=2, **asked)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed: 0 there, 1 now"),
        ({"rank": 1, "world_size": 2}, "world_size: 1 there, 2 now"),
        ({"exclude": {"first"}}, "exclude"),
        ({"layers": [1]}, "taps"),
    ],
    ids=str,
)
def test_a_state_of_another_order_is_refused(
    stream: layertap.ActivationStream, change: dict[str, Any], message: str
) -> None:
    state = stream.batches(500).state_dict()
    with pytest.raises(UsageError, match=message):
        stream.batches(500, **change).load_state_dict(state)


@pytest.mark.parametrize(
    ("there", "now"),
    [
        ({"sequence": 4}, {}),
        ({"include": {"cells"}}, {}),
        ({"role": "user"}, {}),
        ({"exclude": {"sink"}, "sink_factor": 2.0}, {"exclude": {"sink"}}),
        ({"center": True}, {"scale": "unit_rms"}),
        ({"center": True}, {"center": True, "scale": "unit_rms"}),
        ({}, {"center": True}),
        ({"center": True}, {}),
    ],
    ids=str,
)
def test_a_state_is_refused_where_less_or_other_things_are_asked_for_now(
    recorded: layertap.ActivationStream, there: dict[str, Any], now: dict[str, Any]
) -> None:
    begun = recorded.batches(100, pool_tokens=1000, **there)
    next(iter(begun))
    state = begun.state_dict()
    begun.close()
    with pytest.raises(UsageError, match=r"another order|with another normalisation"):
        recorded.batches(100, pool_tokens=1000, **now).load_state_dict(state)
    recorded.batches(100, pool_tokens=1000, **there).load_state_dict(state)


def test_a_state_that_was_refused_is_not_forgotten(recorded: layertap.ActivationStream) -> None:
    begun = recorded.batches(100)
    next(iter(begun))
    state = begun.state_dict()
    begun.close()
    recorded._latest = None
    recorded.load_state_dict(state)
    with pytest.raises(UsageError, match="another order"):
        recorded.batches(100, seed=1)
    assert recorded.batches(100).state_dict() == state


@pytest.mark.whole
def test_a_dataset_that_changed_within_the_pool_is_refused(
    stream: layertap.ActivationStream, few_tasks: Path, tiny_model: Path, tmp_path: Path
) -> None:
    batches = stream.batches(500)
    next(iter(batches))
    state = json.loads(json.dumps(batches.state_dict()))
    batches.close()
    assert batches.state_dict() == state
    lines = few_tasks.read_text().splitlines()
    for number, changed in enumerate(
        ([lines[1], lines[0], *lines[2:]], lines[:-1], [*lines, lines[0].replace("demo_", "more_")])
    ):
        path = tmp_path / f"{number}.jsonl"
        path.write_text("\n".join(changed) + "\n")
        other = layertap.ActivationStream(dataset_path=path, model_path=tiny_model, **SETTINGS)
        resumed = other.batches(500)
        resumed.load_state_dict(state)
        with pytest.raises(RunMismatchError, match="differs from the one of the state"):
            list(resumed)
        other.close()


def test_a_state_of_another_run_or_dataset_is_refused(
    stream: layertap.ActivationStream, few_tasks: Path, tiny_model: Path, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {"pool_tokens": 1000}
    batches = stream.batches(500, **asked)
    list(islice(batches, 5))
    state = batches.state_dict()
    batches.close()
    other = layertap.ActivationStream(dataset_path=few_tasks, model_path=tiny_model, **SETTINGS | {"random_seed": 1})
    with pytest.raises(UsageError, match="another run"):
        other.batches(500, **asked).load_state_dict(state)
    lines = few_tasks.read_text().splitlines()
    changed = tmp_path / "changed.jsonl"
    changed.write_text("\n".join([lines[1], lines[0], *lines[2:]]) + "\n")
    swapped = layertap.ActivationStream(dataset_path=changed, model_path=tiny_model, **SETTINGS)
    resumed = swapped.batches(500, **asked)
    resumed.load_state_dict(state)
    with pytest.raises(RunMismatchError):
        list(resumed)
    other.close()
    swapped.close()


def test_what_only_the_model_can_tell_is_refused(stream: layertap.ActivationStream) -> None:
    with pytest.raises(UsageError, match="cannot count its tokens"):
        stream.batches(500, exclude={"sink"}).count_batches()
    with pytest.raises(UsageError, match="dataset_path"):
        layertap.ActivationStream(model_path=stream.model_path)
    with pytest.raises(UsageError, match="output_dir: is a setting of `layertap extract`"):
        layertap.ActivationStream(dataset_path="x", output_dir="here")
    for name in ("max_tokens_total", "certify"):
        with pytest.raises(UsageError, match=f"{name}: a stream"):
            layertap.ActivationStream(dataset_path="x", **{name: 5})
    with pytest.raises(UsageError, match="not layer 2"):
        stream.batches(500, layers=[2])


def test_a_nan_ends_the_stream_as_it_ends_a_run(recorded: layertap.ActivationStream) -> None:
    next(iter(recorded.batches(100)))
    model = recorded._model
    assert isinstance(model, Recorded)
    position, sample = model.runs[0, 1][0]
    spoilt = {tap: values.copy() for tap, values in sample.activations.items()}
    for values in spoilt.values():
        values[3] = np.nan
    runs = {(0, 1): [(position, replace(sample, activations=spoilt)), *model.runs[0, 1][1:]]}
    bad = replace(model, runs=runs)
    recorded._model = bad
    try:
        with pytest.raises(StorageError, match="token 3: the activation has a NaN"):
            list(recorded.batches(100))
    finally:
        recorded._model = model


def test_left_over_tokens_are_counted(stream: layertap.ActivationStream, stored: layertap.ActivationDataset) -> None:
    ours, theirs = (source.batches(1024, sequence=256, exclude={"first"}) for source in (stream, stored))
    assert ours.left_over == theirs.left_over > 0
    assert ours.count_batches() == len(theirs)


def test_it_shows_itself(stream: layertap.ActivationStream) -> None:
    assert "residual of layers 1, 3 (64 wide), as bfloat16" in repr(stream)
    assert (stream.layers, stream.sites) == ((1, 3), ("residual",))
