"""Reads expressions such as `GridShapeEncoder(RowNumberEncoder(MinimalGridEncoder()))` without evaluating them.

The grammar is Python's, so quoting and keywords work as users expect, but only four kinds of node are walked: a call of
a named encoder, a keyword, a text and a whole number. An expression comes from a command line or a stored run, and
`eval` would let either run anything.
"""

import ast
import difflib
import inspect

from layertap.errors import PromptError
from layertap.prompts.grids import (
    GridCodeBlockEncoder,
    GridEncoder,
    GridShapeEncoder,
    GridWithSeparationEncoder,
    MinimalGridEncoder,
    RepeatNumberEncoder,
    ReplaceNumberEncoder,
    RowNumberEncoder,
)

_ENCODERS: dict[str, type[GridEncoder]] = {
    encoder.__name__: encoder
    for encoder in (
        GridCodeBlockEncoder,
        GridShapeEncoder,
        GridWithSeparationEncoder,
        MinimalGridEncoder,
        RepeatNumberEncoder,
        ReplaceNumberEncoder,
        RowNumberEncoder,
    )
}


def parse_grid_encoder(expression: str) -> GridEncoder:
    """The encoder that `expression` names; `parse_grid_encoder(str(encoder)) == encoder`.

    Raises PromptError where it is not such an expression, names an unknown encoder, or nests what cannot be nested.
    """
    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:  # the last two: nested thousands deep
        raise PromptError(f"grid encoder {expression!r} cannot be read: {error}") from error
    encoder = _value(tree.body)
    if not isinstance(encoder, GridEncoder):
        raise PromptError(f"grid encoder {expression!r} is no encoder; the plainest one is MinimalGridEncoder()")
    return encoder


def _value(node: ast.expr) -> GridEncoder | str | int:
    match node:
        case ast.Call(func=ast.Name(id=name)):
            return _call(name, node)
        case ast.Constant(value=str() | int() as value) if not isinstance(value, bool):
            return value
        case ast.Name(id=name):
            raise PromptError(f"grid encoder: {_encoder_class(name).__name__} needs parentheses after it")
        case _:
            raise PromptError(
                f"grid encoder, column {node.col_offset + 1}: only an encoder, a text or a whole number can stand here"
            )


def _call(name: str, node: ast.Call) -> GridEncoder:
    encoder_class = _encoder_class(name)
    keywords = {keyword.arg: _value(keyword.value) for keyword in node.keywords if keyword.arg is not None}
    if len(keywords) < len(node.keywords):
        raise PromptError(f"grid encoder, column {node.col_offset + 1}: {name} cannot be given `**` arguments")
    signature = inspect.signature(encoder_class)
    try:
        bound = signature.bind(*map(_value, node.args), **keywords)
    except TypeError as error:
        raise PromptError(f"grid encoder: {name}: {error}") from error
    for argument, value in bound.arguments.items():
        if not isinstance(value, wanted := signature.parameters[argument].annotation):
            raise PromptError(f"grid encoder: {argument} of {name} must be of type {wanted.__name__}, not {value!r}")
    return encoder_class(*bound.args, **bound.kwargs)


def _encoder_class(name: str) -> type[GridEncoder]:
    if name in _ENCODERS:
        return _ENCODERS[name]
    close = difflib.get_close_matches(name, _ENCODERS, n=1)
    suggestion = f"did you mean {close[0]}?" if close else f"there are {', '.join(_ENCODERS)}"
    raise PromptError(f"grid encoder: {name!r} is unknown; {suggestion}")
