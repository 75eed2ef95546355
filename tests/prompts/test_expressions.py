import pytest

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
        ("3", "is no encoder"),
        ("'MinimalGridEncoder()'", "is no encoder"),
        ("MinimalGridEncoder", "MinimalGridEncoder needs parentheses"),
        ("MinimalGridEncode()", "did you mean MinimalGridEncoder?"),
        ("Zzz()", "there are GridCodeBlockEncoder"),
        ("GridShapeEncoder(Zzz)", "'Zzz' is unknown"),
        ("__import__('os').system('true')", "column 1: only an encoder"),
        ("RepeatNumberEncoder(1 + 2)", "column 21: only an encoder"),
        ("RepeatNumberEncoder(True)", "column 21: only an encoder"),
        ("RepeatNumberEncoder(*[3])", "column 21: only an encoder"),
        ("RepeatNumberEncoder(**{'n': 3})", "RepeatNumberEncoder cannot be given `[*][*]` arguments"),
        ("RepeatNumberEncoder(m=3)", "RepeatNumberEncoder: got an unexpected keyword argument 'm'"),
        ("RepeatNumberEncoder('3')", "n of RepeatNumberEncoder must be of type int, not '3'"),
        ("RowNumberEncoder(3)", "inner of RowNumberEncoder must be of type GridEncoder"),
        ("GridShapeEncoder()", "GridShapeEncoder: missing a required argument: 'inner'"),
        ("MinimalGridEncoder(MinimalGridEncoder())", "MinimalGridEncoder: too many positional arguments"),
        ("RowNumberEncoder(GridShapeEncoder(MinimalGridEncoder()))", "GridShapeEncoder cannot stand inside"),
    ],
)
def test_what_is_no_such_expression_is_refused(expression, message):
    with pytest.raises(PromptError, match=message):
        parse_grid_encoder(expression)
