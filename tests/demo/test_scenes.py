from random import Random

import numpy as np
import pytest

from layertap.demo.scenes import components, draw_colours, enclosed, flooded, grown, placed, solid, speckled


def picture(*rows: str) -> np.ndarray:
    return np.array([[cell == "#" for cell in row] for row in rows])


def test_growing_takes_the_cells_beside_but_not_across_the_corner_nor_the_edge():
    assert np.array_equal(grown(picture("...", ".#.", "...")), picture(".#.", "###", ".#."))
    assert np.array_equal(grown(picture("#..")), picture("##."))


def test_a_flood_does_not_pass_through_corners_and_starts_inside():
    assert np.array_equal(flooded(picture("##.", "..#"), (0, 0)), picture("##.", "..."))
    assert not flooded(picture("#."), (0, 1)).any()


def test_components_are_apart_and_together_make_the_whole():
    whole = picture("##.#", "...#", "#..#")
    parts = components(whole)
    assert [int(part.sum()) for part in parts] == [2, 3, 1]
    assert np.array_equal(sum(part.astype(int) for part in parts), whole)


def test_only_a_closed_ring_encloses_its_middle():
    assert np.array_equal(enclosed(picture("###", "#.#", "###")), picture("...", ".#.", "..."))
    assert not enclosed(picture("###", "#.#", "#.#")).any()


@pytest.mark.parametrize("seed", range(20))
def test_stamps_never_touch(seed):
    rng = Random(seed)
    stamps = [solid(rng, colour) for colour in range(1, 8)]
    canvas = placed(rng, stamps)
    found = components(canvas != 0)
    assert len(found) == len(set(canvas[canvas != 0].tolist()))  # touching ones would count as one part of two colours


def test_the_first_stamp_is_always_placed():
    assert all(placed(Random(seed), [np.ones((8, 8), dtype=np.int64)]).sum() == 64 for seed in range(20))


def test_drawn_colours_differ_and_spare_the_forbidden():
    drawn = draw_colours(Random(0), 8, but=(3,))
    assert sorted(drawn) == [1, 2, 4, 5, 6, 7, 8, 9]


def test_speckles_use_only_the_palette_and_the_background():
    assert set(np.unique(speckled(Random(0), low=14, palette=[2, 7])).tolist()) == {0, 2, 7}
