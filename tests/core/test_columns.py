import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layertap.core.columns import COLUMNS, FIRST, NO_LABELS, SPECIAL, find_sinks, token_columns, usual_norms
from layertap.core.sample import Sample

IDS = np.array([5, 9, 5, 7], np.int32)


def test_flags_mark_the_first_token_and_special_ones():
    flags = token_columns(IDS, {9, 7})["flags"]
    assert flags.tolist() == [FIRST, SPECIAL, 0, SPECIAL]
    assert token_columns(IDS, {5})["flags"].tolist() == [FIRST | SPECIAL, 0, SPECIAL, 0]
    assert token_columns(IDS[:0], {5})["flags"].tolist() == []


def test_positions_count_from_zero():
    assert token_columns(IDS, set())["positions"].tolist() == [0, 1, 2, 3]


def test_every_column_has_the_dtype_of_the_schema():
    assert {name: values.dtype for name, values in token_columns(IDS, set()).items()} == dict(COLUMNS)


def test_a_sample_without_a_column_or_with_a_shorter_one_is_refused():
    columns = token_columns(IDS, set())
    for wrong in ({"flags": columns["flags"][1:]}, {"flags": columns["flags"].astype(np.int32)}, {"more": IDS}):
        with pytest.raises(ValueError, match="every column of COLUMNS needs a source"):
            Sample(0, "task", "text", columns | wrong)
    with pytest.raises(ValueError, match="needs a source"):
        Sample(0, "task", "text", {"token_ids": IDS})


def test_a_sample_that_is_cut_keeps_the_first_values_of_every_column():
    cut = Sample(0, "task", "text", token_columns(IDS, {7})).cut(2)
    held = {"token_ids": [5, 9], "positions": [0, 1], "flags": [FIRST, 0]}
    plain = {name: [value, value] for name, value in NO_LABELS.items()}
    assert {name: values.tolist() for name, values in cut.columns.items()} == held | plain


@given(st.lists(st.lists(st.floats(0.5, 2.0, width=32), min_size=1, max_size=9), min_size=1, max_size=4), st.randoms())
def test_sinks_depend_on_their_own_sample_alone(samples, chance):
    """However the samples are cut into shards, the same tokens are sinks."""
    for norms in samples:
        if len(norms) > 2 and chance.random() < 0.5:
            norms[chance.randrange(len(norms))] = 1000.0
    together = np.concatenate([np.array(norms, np.float32) for norms in samples])
    lengths = [len(norms) for norms in samples]
    usual = usual_norms(together, np.cumsum([0, *lengths]))
    found = find_sinks(together, np.repeat(usual, lengths), 10.0)
    alone = []
    for norms in samples:
        own = np.array(norms, np.float32)
        alone += find_sinks(own, usual_norms(own, np.array([0, len(own)])).repeat(len(own)), 10.0).tolist()
    assert found.tolist() == alone == (together > 100).tolist()


@pytest.mark.parametrize(
    ("norms", "usual"),
    [
        ([3.0], 3.0),
        ([1000.0, 3.0], 3.0),
        ([1.0, 2.0, 1000.0], 2.0),
        ([4.0, 1.0, 3.0, 2.0], 2.0),
        ([np.nan, 5.0, np.inf, 7.0], 5.0),
        ([np.nan], np.inf),
        ([], np.inf),
    ],
)
def test_the_usual_norm_is_the_lower_median_of_what_is_finite(norms, usual):
    assert usual_norms(np.array(norms, np.float32), np.array([0, len(norms)])).tolist() == [usual]
