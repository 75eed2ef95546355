import itertools
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from layertap.errors import PromptError
from layertap.prompts import (
    GridCodeBlockEncoder,
    GridShapeEncoder,
    GridWithSeparationEncoder,
    MinimalGridEncoder,
    RepeatNumberEncoder,
    ReplaceNumberEncoder,
    RowNumberEncoder,
    parse_grid_encoder,
)

_GRID = ((0, 1), (2, 3))
_SYMBOLS = "ɐɑɒɓɔɕɖɗɘə"

cells = st.one_of(
    st.builds(MinimalGridEncoder),
    st.builds(
        GridWithSeparationEncoder, st.sampled_from(["|", " ", ", ", "\t", "`", "```", "'", '"', "\\", "-x-", "é"])
    ),
    st.builds(RepeatNumberEncoder, st.integers(2, 4)),
)


def _maybe(wrapper, inner):
    return st.one_of(inner, inner.map(wrapper))


encoders = st.one_of(
    _maybe(block, _maybe(RowNumberEncoder, _maybe(ReplaceNumberEncoder, cells)))
    for block in (GridCodeBlockEncoder, GridShapeEncoder)
)


def _grids(max_side):
    side = st.integers(1, max_side)
    return st.tuples(side, side).flatmap(
        lambda shape: st.tuples(*[st.tuples(*[st.integers(0, 9)] * shape[1])] * shape[0])
    )


@given(encoder=encoders, grid=_grids(30))
def test_every_legal_nesting_reads_back_every_grid(encoder, grid):
    assert encoder.decode(encoder.encode(grid)) == grid


@given(encoder=encoders)
def test_str_is_the_expression_that_builds_the_encoder(encoder):
    assert parse_grid_encoder(str(encoder)) == encoder


@given(encoder=encoders, grid=_grids(3), data=st.data())
def test_a_text_with_one_character_more_is_another_grid_or_none(encoder, grid, data):
    text = encoder.encode(grid)
    place = data.draw(st.integers(0, len(text)))
    longer = text[:place] + data.draw(st.sampled_from("0 \n1`|٣")) + text[place:]
    try:
        read = encoder.decode(longer)
    except PromptError:
        return
    assert encoder.encode(read) == longer


@pytest.mark.parametrize(
    ("encoder", "lines"),
    [
        (MinimalGridEncoder(), ["01", "23"]),
        (GridWithSeparationEncoder("|"), ["0|1", "2|3"]),
        (RepeatNumberEncoder(), ["000111", "222333"]),
        (ReplaceNumberEncoder(MinimalGridEncoder()), ["ɐɑ", "ɒɓ"]),
        (RowNumberEncoder(MinimalGridEncoder()), ["1 01", "2 23"]),
        (GridCodeBlockEncoder(MinimalGridEncoder()), ["```grid", "01", "23", "```"]),
        (GridShapeEncoder(MinimalGridEncoder()), ["```grid shape: 2x2", "01", "23", "```"]),
        (GridShapeEncoder(RowNumberEncoder(MinimalGridEncoder())), ["```grid shape: 2x2", "1 01", "2 23", "```"]),
        (
            GridShapeEncoder(RowNumberEncoder(ReplaceNumberEncoder(RepeatNumberEncoder(2)))),
            ["```grid shape: 2x2", "1 ɐɐɑɑ", "2 ɒɒɓɓ", "```"],
        ),
    ],
    ids=str,
)
def test_formats(encoder, lines):
    assert encoder.encode(_GRID) == "\n".join(lines)


def test_shape_is_rows_by_columns():
    assert GridShapeEncoder(MinimalGridEncoder()).encode(((1, 2, 3),)).startswith("```grid shape: 1x3\n")


def test_row_numbers_of_two_digits_are_read_back():
    tall = tuple((row % 10, 7) for row in range(30))
    encoder = RowNumberEncoder(GridWithSeparationEncoder(" "))
    assert encoder.encode(tall).splitlines()[9] == "10 9 7"
    assert encoder.decode(encoder.encode(tall)) == tall


@pytest.mark.parametrize(
    ("encoder", "text"),
    [
        (MinimalGridEncoder(), ""),
        (MinimalGridEncoder(), "01\n2"),
        (MinimalGridEncoder(), "01\n23\n"),
        (MinimalGridEncoder(), " 01"),
        (MinimalGridEncoder(), "0x"),
        (MinimalGridEncoder(), "٠١"),
        (MinimalGridEncoder(), "0" * 31),
        (MinimalGridEncoder(), "\n".join("0" * 31)),
        (GridWithSeparationEncoder("|"), "0|12"),
        (GridWithSeparationEncoder("|"), "0|1|"),
        (GridWithSeparationEncoder("|"), "0|-1"),
        (RepeatNumberEncoder(3), "001111"),
        (RepeatNumberEncoder(3), "0001"),
        (ReplaceNumberEncoder(MinimalGridEncoder()), "01"),
        (RowNumberEncoder(MinimalGridEncoder()), "1 01\n3 23"),
        (RowNumberEncoder(MinimalGridEncoder()), "01\n23"),
        (GridCodeBlockEncoder(MinimalGridEncoder()), "```grid\n01"),
        (GridCodeBlockEncoder(MinimalGridEncoder()), "```\n01\n```"),
        (GridCodeBlockEncoder(MinimalGridEncoder()), "01"),
        (GridShapeEncoder(MinimalGridEncoder()), "```grid shape: 2x1\n01\n```"),
        (GridShapeEncoder(MinimalGridEncoder()), "```grid\n01\n```"),
    ],
    ids=lambda value: None if isinstance(value, str) else str(value),
)
def test_texts_that_are_no_such_grid_are_refused(encoder, text):
    with pytest.raises(PromptError, match="writes no grid as"):
        encoder.decode(text)


def test_the_widest_grid_between_tabs_is_read_back():
    grid = (tuple(cell % 10 for cell in range(30)),) * 30
    encoder = GridWithSeparationEncoder("\t")
    assert encoder.decode(encoder.encode(grid)) == grid


def test_of_a_long_text_that_is_no_grid_80_characters_are_said():
    with pytest.raises(PromptError, match=f"writes no grid as '{'x' * 80}'$"):
        MinimalGridEncoder().decode("x" * 80)
    with pytest.raises(PromptError, match=rf"writes no grid as '{'x' * 80}\.\.\.'$"):
        MinimalGridEncoder().decode("x" * 81)


@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        (ReplaceNumberEncoder, ReplaceNumberEncoder),
        (ReplaceNumberEncoder, RowNumberEncoder),
        (ReplaceNumberEncoder, GridCodeBlockEncoder),
        (ReplaceNumberEncoder, GridShapeEncoder),
        (RowNumberEncoder, RowNumberEncoder),
        (RowNumberEncoder, GridCodeBlockEncoder),
        (RowNumberEncoder, GridShapeEncoder),
        (GridCodeBlockEncoder, GridCodeBlockEncoder),
        (GridCodeBlockEncoder, GridShapeEncoder),
        (GridShapeEncoder, GridCodeBlockEncoder),
        (GridShapeEncoder, GridShapeEncoder),
    ],
)
def test_wrappers_nest_in_one_order_only(outer, inner):
    with pytest.raises(PromptError, match=f"{inner.__name__} cannot stand inside {outer.__name__}, because"):
        outer(inner(MinimalGridEncoder()))


@pytest.mark.parametrize(
    ("outer", "why"),
    [
        (ReplaceNumberEncoder, "it would replace digits that are no cells"),
        (RowNumberEncoder, "it would number lines that are no bare rows of cells"),
        (GridCodeBlockEncoder, "fences inside fences would end the block too early"),
        (GridShapeEncoder, "fences inside fences would end the block too early"),
    ],
)
def test_why_wrappers_nest_in_one_order_is_said(outer, why):
    order = "GridCodeBlockEncoder or GridShapeEncoder, RowNumberEncoder, ReplaceNumberEncoder, then the cells"
    with pytest.raises(PromptError, match=f", because {why}. From the outside in, the order is: {order}$"):
        outer(GridCodeBlockEncoder(MinimalGridEncoder()))


@pytest.mark.parametrize(
    ("separator", "why"),
    [("", "empty"), ("1", "digit"), (" 2 ", "digit"), ("٣", "digit"), ("\n", "line breaks"), ("\r", "line breaks"),
     ("\u2028", "line breaks"), ("\ud800", "printable")],
)  # fmt: skip
def test_separators_that_cannot_be_told_from_cells_or_rows_are_refused(separator, why):
    with pytest.raises(PromptError, match=why):
        GridWithSeparationEncoder(separator)


def test_a_separator_of_replacing_symbols_is_refused_where_digits_are_replaced():
    with pytest.raises(PromptError, match="which are the cells here"):
        ReplaceNumberEncoder(GridWithSeparationEncoder(_SYMBOLS[4]))


@pytest.mark.parametrize("n", [1, 0, -3])
def test_digits_are_repeated_at_least_twice(n):
    with pytest.raises(PromptError, match="n must be 2 or more"):
        RepeatNumberEncoder(n)


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
def test_normalisation_leaves_symbols_alone(form):
    assert unicodedata.normalize(form, _SYMBOLS) == _SYMBOLS


def test_every_symbol_is_one_qwen_token_wherever_it_stands(qwen_folder):
    tokenizer = Tokenizer.from_file(str(qwen_folder / "tokenizer.json"))
    symbols = [tokenizer.token_to_id(token) for token in tokenizer.encode(_SYMBOLS).tokens]
    everywhere = [f"1 {one}{other}\n" for one, other in itertools.product(_SYMBOLS, repeat=2)]
    seen = [encoding.ids for encoding in tokenizer.encode_batch(everywhere)]
    space, newline = tokenizer.encode(" ").ids[0], tokenizer.encode("\n").ids[0]
    one_ = tokenizer.encode("1").ids[0]
    assert seen == [[one_, space, one, other, newline] for one, other in itertools.product(symbols, repeat=2)]
