import itertools
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from layertap.errors import PromptError
from layertap.prompts.grids import (
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


def _read_back(encoder, text):
    """Return the grid that `text` shows, parsed from the outside in."""
    lines = text.split("\n")
    while not isinstance(encoder, MinimalGridEncoder | GridWithSeparationEncoder | RepeatNumberEncoder):
        if isinstance(encoder, GridCodeBlockEncoder):
            lines = lines[1:-1]
        elif isinstance(encoder, RowNumberEncoder):
            lines = [line.partition(" ")[2] for line in lines]
        else:
            lines = [line.translate(str.maketrans(_SYMBOLS, "0123456789")) for line in lines]
        encoder = encoder.inner
    if isinstance(encoder, GridWithSeparationEncoder):
        return tuple(tuple(map(int, line.split(encoder.separator))) for line in lines)
    return tuple(tuple(map(int, line[:: getattr(encoder, "n", 1)])) for line in lines)


@given(encoder=encoders, grid=_grids(30))
def test_every_grid_can_be_read_back_from_every_legal_nesting(encoder, grid):
    assert _read_back(encoder, encoder.encode(grid)) == grid


@given(encoder=encoders)
def test_str_is_the_expression_that_builds_the_encoder(encoder):
    assert parse_grid_encoder(str(encoder)) == encoder


def test_str_is_always_the_same_expression():
    encoder = GridCodeBlockEncoder(RowNumberEncoder(RepeatNumberEncoder()))
    assert str(encoder) == "GridCodeBlockEncoder(RowNumberEncoder(RepeatNumberEncoder(3)))"


@pytest.mark.parametrize(
    ("encoder", "lines"),
    [
        (MinimalGridEncoder(), ["01", "23"]),
        (GridWithSeparationEncoder("|"), ["0|1", "2|3"]),
        (GridWithSeparationEncoder("\t"), ["0\t1", "2\t3"]),
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


def test_row_numbers_go_on_with_two_digits():
    tall = tuple((row % 10, 7) for row in range(30))
    encoder = RowNumberEncoder(GridWithSeparationEncoder(" "))
    assert encoder.encode(tall).splitlines()[8:10] == ["9 8 7", "10 9 7"]


_WHY = {
    ReplaceNumberEncoder: "it would replace digits that are not cells",
    RowNumberEncoder: "it would number lines that are not plain rows of cells",
    GridCodeBlockEncoder: "fences inside fences would end the block too early",
    GridShapeEncoder: "fences inside fences would end the block too early",
}
_RANKS = {ReplaceNumberEncoder: 1, RowNumberEncoder: 2, GridCodeBlockEncoder: 3, GridShapeEncoder: 3}
_WRONG = [pair for pair in itertools.product(_RANKS, repeat=2) if _RANKS[pair[0]] <= _RANKS[pair[1]]]


@pytest.mark.parametrize(("outer", "inner"), _WRONG)
def test_wrappers_nest_in_one_order_only(outer, inner):
    order = "GridCodeBlockEncoder or GridShapeEncoder, RowNumberEncoder, ReplaceNumberEncoder, then the cells"
    why = f"{inner.__name__} cannot be inside {outer.__name__}, because {_WHY[outer]}"
    with pytest.raises(PromptError, match=f"{why}. From the outside in, the order is: {order}$"):
        outer(inner(MinimalGridEncoder()))


@pytest.mark.parametrize(
    ("separator", "why"),
    [("", "empty"), ("1", "digit"), (" 2 ", "digit"), ("٣", "digit"), ("\n", "line breaks"), ("\r", "line breaks"),
     ("\u2028", "line breaks"), ("\ud800", "printable")],
)  # fmt: skip
def test_separators_that_cannot_be_told_from_cells_or_rows_are_refused(separator, why):
    with pytest.raises(PromptError, match=why):
        GridWithSeparationEncoder(separator)


def test_a_separator_of_replacing_symbols_is_refused_where_digits_are_replaced():
    with pytest.raises(PromptError, match="which stand for cells here"):
        ReplaceNumberEncoder(GridWithSeparationEncoder(_SYMBOLS[4]))


@pytest.mark.parametrize("n", [1, 0, -3])
def test_digits_are_repeated_at_least_twice(n):
    with pytest.raises(PromptError, match="n must be 2 or more"):
        RepeatNumberEncoder(n)


def test_normalisation_leaves_symbols_alone():
    assert {unicodedata.normalize(form, _SYMBOLS) for form in ("NFC", "NFD", "NFKC", "NFKD")} == {_SYMBOLS}


def test_every_symbol_is_one_qwen_token_wherever_it_stands(qwen_folder):
    tokenizer = Tokenizer.from_file(str(qwen_folder / "tokenizer.json"))
    symbols = [tokenizer.token_to_id(token) for token in tokenizer.encode(_SYMBOLS).tokens]
    everywhere = [f"1 {one}{other}\n" for one, other in itertools.product(_SYMBOLS, repeat=2)]
    seen = [encoding.ids for encoding in tokenizer.encode_batch(everywhere)]
    space, newline = tokenizer.encode(" ").ids[0], tokenizer.encode("\n").ids[0]
    one_ = tokenizer.encode("1").ids[0]
    assert seen == [[one_, space, one, other, newline] for one, other in itertools.product(symbols, repeat=2)]


@pytest.mark.parametrize(
    ("expression", "encoder"),
    [
        ("MinimalGridEncoder()", MinimalGridEncoder()),
        ("  MinimalGridEncoder( )\n", MinimalGridEncoder()),
        ("GridWithSeparationEncoder('|')", GridWithSeparationEncoder("|")),
        ('GridWithSeparationEncoder(separator="|")', GridWithSeparationEncoder("|")),
        ("RepeatNumberEncoder()", RepeatNumberEncoder(3)),
        ("RepeatNumberEncoder(2)", RepeatNumberEncoder(2)),
        ("RepeatNumberEncoder(n=4)", RepeatNumberEncoder(4)),
        ("ReplaceNumberEncoder(MinimalGridEncoder())", ReplaceNumberEncoder(MinimalGridEncoder())),
        ("GridCodeBlockEncoder(inner=RepeatNumberEncoder(3))", GridCodeBlockEncoder(RepeatNumberEncoder(3))),
        (
            "GridShapeEncoder(RowNumberEncoder(MinimalGridEncoder()))",
            GridShapeEncoder(RowNumberEncoder(MinimalGridEncoder())),
        ),
    ],
)
def test_expressions(expression, encoder):
    assert parse_grid_encoder(expression) == encoder


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("", "cannot be read"),
        ("GridShapeEncoder(", "cannot be read"),
        ("MinimalGridEncoder()\0", "cannot be read"),
        ("(" * 5000, "cannot be read"),
        ("3", "is not an encoder"),
        ("'MinimalGridEncoder()'", "is not an encoder"),
        ("MinimalGridEncoder", "MinimalGridEncoder needs parentheses"),
        ("MinimalGridEncode()", "did you mean MinimalGridEncoder?"),
        ("Zzz()", "there are GridCodeBlockEncoder"),
        ("GridShapeEncoder(Zzz)", "'Zzz' is unknown"),
        ("__import__('os').system('true')", "column 1: only an encoder"),
        ("RepeatNumberEncoder(1 + 2)", "column 21: only an encoder"),
        ("RepeatNumberEncoder(True)", "column 21: only an encoder"),
        ("RepeatNumberEncoder(*[3])", "column 21: only an encoder"),
        ("RepeatNumberEncoder(**{'n': 3})", "column 1: RepeatNumberEncoder cannot be given `[*][*]` arguments"),
        ("RepeatNumberEncoder(m=3)", "RepeatNumberEncoder: got an unexpected keyword argument 'm'"),
        ("RepeatNumberEncoder('3')", "n of RepeatNumberEncoder must be of type int, not '3'"),
        ("RowNumberEncoder(3)", "inner of RowNumberEncoder must be of type GridEncoder"),
        ("GridShapeEncoder()", "GridShapeEncoder: missing a required argument: 'inner'"),
        ("MinimalGridEncoder(MinimalGridEncoder())", "MinimalGridEncoder: too many positional arguments"),
        ("RowNumberEncoder(GridShapeEncoder(MinimalGridEncoder()))", "GridShapeEncoder cannot be inside"),
    ],
)
def test_what_is_no_such_expression_is_refused(expression, message):
    with pytest.raises(PromptError, match=message):
        parse_grid_encoder(expression)
