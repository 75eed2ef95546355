"""Properties of packing, for any lengths."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from layertap.pipeline.packing import Placement, Step, batch_arrays, pack_window, row_ladder, step_kinds, step_shapes

LADDER = row_ladder(512, 2000)
lengths_of_windows = st.lists(st.integers(1, 2000), max_size=120)


def test_the_ladder_doubles_and_ends_where_the_longest_sample_fits() -> None:
    assert row_ladder(4096, 16_384) == (4096, 8192, 16_384)
    assert row_ladder(4096, 10_000) == (4096, 8192, 10_240)
    assert row_ladder(4096, 100) == (4096,)


@given(lengths_of_windows, st.integers(1, 5))
def test_every_sample_is_placed_once_and_whole(lengths: list[int], batch_size: int) -> None:
    steps = pack_window(lengths, LADDER, batch_size)
    placed = [place for step in steps for place in step.placements]
    assert sorted(place.sample for place in placed) == list(range(len(lengths)))
    assert all(place.length == lengths[place.sample] for place in placed)


@given(lengths_of_windows, st.integers(1, 5))
def test_samples_in_a_row_stand_side_by_side_and_fit(lengths: list[int], batch_size: int) -> None:
    for step in pack_window(lengths, LADDER, batch_size):
        for row in range(step.rows):
            end = 0
            for place in (place for place in step.placements if place.row == row):
                assert place.start == end
                end += place.length
            assert 0 < end <= step.length


@given(lengths_of_windows, st.integers(1, 5))
def test_few_shapes_are_compiled(lengths: list[int], batch_size: int) -> None:
    shapes = {(step.rows, step.length) for step in pack_window(lengths, LADDER, batch_size)}
    assert shapes <= {(batch_size, LADDER[0]), *((1, length) for length in LADDER)}


@given(lengths_of_windows, st.integers(1, 3), st.integers(2, 8))
def test_every_device_gets_as_many_rows(lengths: list[int], batch_size: int, devices: int) -> None:
    steps = pack_window(lengths, LADDER, batch_size, devices)
    assert sorted(place.sample for step in steps for place in step.placements) == list(range(len(lengths)))
    assert all(step.placements for step in steps)
    shapes = step_shapes(LADDER, batch_size, devices)
    assert set(shapes) == {(batch_size * devices, LADDER[0]), *((devices, length) for length in LADDER)}
    order = [shapes.index((step.rows, step.length)) for step in steps]
    assert order == sorted(order)


def test_long_rows_that_all_devices_run_take_short_samples_first() -> None:
    (step,) = pack_window([1500, 400, 400, 400], LADDER, 4, devices=2)
    assert (step.rows, step.length, len(step.placements)) == (2, 2048, 4)


@given(lengths_of_windows)
def test_longer_rows_run_first(lengths: list[int]) -> None:
    steps = pack_window(lengths, LADDER, 2)
    assert [step.length for step in steps] == sorted((step.length for step in steps), reverse=True)


def test_short_samples_fill_the_gaps_of_long_rows() -> None:
    (step,) = pack_window([1500, 300, 200], LADDER, 4)
    assert (step.rows, step.length, len(step.placements)) == (1, 2048, 3)


def test_batch_arrays_say_who_sees_whom() -> None:
    step = Step(2, 8, (Placement(1, 0, 0, 3), Placement(0, 0, 3, 2), Placement(2, 1, 0, 1)))
    tokens, seg_start = batch_arrays(
        step, [np.array([7, 8], np.int32), np.array([1, 2, 3], np.int32), np.array([9], np.int32)]
    )
    assert tokens.tolist() == [[1, 2, 3, 7, 8, 0, 0, 0], [9, 0, 0, 0, 0, 0, 0, 0]]
    assert seg_start.tolist() == [[0, 0, 0, 3, 3, 5, 6, 7], [0, 1, 2, 3, 4, 5, 6, 7]]


def test_a_step_computes_all_of_its_rows() -> None:
    assert Step(3, 512, ()).computed_tokens == 1536


def test_a_sample_that_fits_exactly_needs_no_longer_row() -> None:
    assert [step.length for step in pack_window([2048, 1024, 512], LADDER, 1)] == [2048, 1024, 512]
    (step,) = pack_window([1500, 548], LADDER, 1)
    assert [place.start for place in step.placements] == [0, 1500]


def test_samples_are_placed_longest_first_and_equal_ones_in_their_order() -> None:
    (step,) = pack_window([200, 148, 200, 1500], LADDER, 1)
    assert [place.sample for place in step.placements] == [3, 0, 2, 1]


def test_a_sample_goes_where_it_leaves_the_smallest_gap() -> None:
    gaps_of_100_and_200 = [1948, 824]
    long, short = pack_window([*gaps_of_100_and_200, 90], LADDER, 1)
    assert [place.sample for place in long.placements] == [0, 2]
    long, short = pack_window([*gaps_of_100_and_200, 190], LADDER, 1)
    assert [place.sample for place in short.placements] == [1, 2]


def test_rows_of_the_first_rung_run_together_and_what_is_left_of_them_alone() -> None:
    assert [step.rows for step in pack_window([512] * 9, LADDER, 4)] == [4, 4, 1]
    assert [step.rows for step in pack_window([512] * 9, LADDER, 2, devices=2)] == [4, 4, 2]
    assert [step.rows for step in pack_window([512] * 3, LADDER, 2, devices=2)] == [2, 2]
    assert [step.rows for step in pack_window([1024] * 3, LADDER, 4)] == [1, 1, 1]


def test_without_batches_there_is_one_shape_a_rung() -> None:
    assert step_shapes((512, 1024), 1) == [(1, 1024), (1, 512)]
    assert step_shapes((512, 1024), 3) == [(1, 1024), (3, 512), (1, 512)]


@given(st.lists(st.tuples(st.integers(1, 2048), st.integers(0, 2)), min_size=1, max_size=60))
def test_samples_of_different_prefixes_are_never_in_one_step(samples: list[tuple[int, int]]) -> None:
    lengths, prefixes = zip(*samples, strict=True)
    steps = pack_window(lengths, LADDER, 2, prefixes=prefixes)
    placed = [(place.sample, place.length, step.prefix) for step in steps for place in step.placements]
    assert sorted(placed) == [(number, *sample) for number, sample in enumerate(samples)]
    kinds = step_kinds(LADDER, 2, prefixes=2)
    order = [kinds.index(step.kind) for step in steps]
    assert order == sorted(order)


def test_of_a_sample_with_a_prefix_the_rest_is_placed() -> None:
    (step,) = pack_window([3], LADDER, 1, prefixes=[1])
    tokens, _ = batch_arrays(step, [np.array([7, 8, 9, 10, 11], np.int32)])
    assert tokens[0, :4].tolist() == [9, 10, 11, 0]
