"""`docs/api.md`: what is public in Python, from signatures and docstrings.

Signatures are taken from the source as it is written there: at run time an annotation has the long
names of its modules.
"""

import ast
import importlib
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, is_dataclass
from typing import Any

from layertap.config.arguments import all_fields

_OPENING = """\
# Python, name by name

You want to know what a class or function takes, gives and raises. You need `import layertap`, and

    help(layertap.Model)

says the same. [From Python](python.md) and [Reading](reading.md) show how they go together. What is
not on this page is not public, and may change with any version.

This page is made by `make reference` of the docstrings.
"""
_PUBLIC = {
    "Models, runs, datasets": (
        ("layertap", ("Model", "extract", "ActivationDataset", "ActivationStream", "Sample")),
        ("layertap.reader.labels", ("Labels",)),
    ),
    "Batches": (
        ("layertap.reader.config", ("BatchConfig",)),
        ("layertap.reader.handover", ("Batch",)),
        ("layertap.reader.batches", ("Batches",)),
        ("layertap.api.stream", ("StreamBatches",)),
        ("layertap.reader", ("Normalisation", "AffineMap", "fold")),
    ),
    "Trainers": (
        ("layertap.export", ("for_saelens", "for_dictionary_learning", "for_sparsify", "as_iterable_dataset")),
    ),
}
_MADE_BY_YOU = ("Model", "ActivationDataset", "ActivationStream")  # others come from these
_LONGEST = 96


def python_page() -> str:
    """The whole page."""
    lines = [_OPENING]
    for title, homes in _PUBLIC.items():
        lines += [f"## {title}", ""]
        for module, names in homes:
            for name in names:
                lines += _described(f"{module}.{name}", getattr(importlib.import_module(module), name))
    errors = importlib.import_module("layertap.errors")
    lines += ["## Errors", "", "`layertap.errors` has them.", "", _doc(inspect.getsource(errors), 0), ""]
    return "\n".join(lines).rstrip() + "\n"


def _described(name: str, found: Any) -> Iterator[str]:  # noqa: ANN401 - a class or a function
    yield f"### {name}"
    yield ""
    if not inspect.isclass(found):
        yield from _function(name.rpartition(".")[2], found)
        return
    yield from (_doc(inspect.getsource(found)), "")
    if is_dataclass(found):
        yield from _fields(found)
    elif found.__name__ in _MADE_BY_YOU:
        yield from _function(found.__name__, vars(found)["__init__"])
    for member, value in _members(found) if found.__name__ != "BatchConfig" else ():
        if inspect.isfunction(value):
            yield from _function(f".{member}", value)
        else:
            function = value.fget if isinstance(value, property) else value.func
            yield from (f"**`.{member}`**", "", _doc(inspect.getsource(function)), "")


def _fields(found: type) -> Iterator[str]:
    """The fields of a dataclass, each with the string under it."""
    for field in all_fields(found):
        default = "" if field.default is MISSING else f" (default: {_value(field.default)})"
        yield from _wrap(f"- `{field.name}`{default}{f': {field.sentence}' if field.sentence else ''}")
    yield ""


def _members(found: type) -> Iterator[tuple[str, Any]]:
    """The public methods and properties, in the order of the source, and those inherited from
    Layertap's own classes.
    """
    seen: dict[str, Any] = {}
    for base in found.__mro__:
        if base.__module__.startswith("layertap"):
            for name, value in vars(base).items():
                seen.setdefault(name, value.__func__ if isinstance(value, staticmethod | classmethod) else value)
    for name, value in seen.items():
        public = not name.startswith("_") or (name in ("__len__", "__getitem__", "__iter__") and value.__doc__)
        if public and (inspect.isfunction(value) or isinstance(value, property) or hasattr(value, "attrname")):
            yield name, value


def _function(name: str, function: Any) -> Iterator[str]:  # noqa: ANN401 - a function
    yield from ("```python", _signature(name, function), "```", "")
    if function.__doc__:
        yield from (_doc(inspect.getsource(function)), "")


def _signature(name: str, function: Any) -> str:  # noqa: ANN401 - a function
    """The function's first line, without `self`, a parameter a line where it is long."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    assert isinstance(node, ast.FunctionDef)
    given = node.args
    given.posonlyargs = [it for it in given.posonlyargs if it.arg != "self"]
    given.args = [it for it in given.args if it.arg != "self"]
    returns = f" -> {ast.unparse(node.returns)}" if node.returns and node.name != "__init__" else ""
    line = f"{name}({ast.unparse(given)}){returns}"
    if len(line) <= _LONGEST:
        return line
    return "\n".join((f"{name}(", *(f"    {it}," for it in _parameters(given)), f"){returns}"))


def _parameters(given: ast.arguments) -> Iterator[str]:
    """Each parameter by itself, and the star that makes the rest keywords."""
    plain = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(plain) - len(given.defaults)) + [*given.defaults]
    yield from (_parameter(it, default) for it, default in zip(plain, defaults, strict=True))
    if given.vararg or given.kwonlyargs:
        yield f"*{ast.unparse(given.vararg)}" if given.vararg else "*"
    yield from (_parameter(it, default) for it, default in zip(given.kwonlyargs, given.kw_defaults, strict=True))
    if given.kwarg:
        yield f"**{ast.unparse(given.kwarg)}"


def _parameter(it: ast.arg, default: ast.expr | None) -> str:
    return ast.unparse(it) + (f" = {ast.unparse(default)}" if default is not None else "")


def _doc(source: str, indent: int = 4) -> str:
    """The docstring of a class, a function or a module, without the indentation of its source.

    It is read from there: Python 3.13 takes the indentation out, and earlier ones do not.
    """
    tree = ast.parse(textwrap.dedent(source))
    node = tree if indent == 0 else tree.body[0]
    assert isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
    first, *rest = (ast.get_docstring(node, clean=False) or "").splitlines() or [""]
    return "\n".join([first, *(line[indent:] for line in rest)]).rstrip()


def _value(default: object) -> str:
    return f"`{default!r}`" if default not in (frozenset(), ()) else "nothing"


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, 100, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
