"""Turn the arguments of a Python call into a frozen dataclass of settings.  The arguments are the
flags of the command line without dashes, all on one level: a field of a part of the settings
(`UploadConfig`) is given like the others. Types may be loose: a list for a tuple, a path for a
text, one value for several. Layers may be `12`, `[6, 12]`, `range(24)`, `"1-3"` or `"all"`.  Errors
name the argument: an unknown name (with the nearest known one), or a value of the wrong kind, which
would otherwise raise an error far from the call.
"""

import operator
import os
from collections.abc import Collection, Mapping, Set
from dataclasses import MISSING
from difflib import get_close_matches
from typing import Any, Literal, TypeVar, get_args, get_origin

from tyro.constructors import PrimitiveConstructorSpec

from layertap.config.arguments import Field, Group, all_fields, alternatives, bare, extras_of, settings_of
from layertap.errors import UsageError

T = TypeVar("T")
_NONE: frozenset[str] = frozenset()


def from_keywords(
    config_type: type[T], values: Mapping[str, Any], groups: Collection[Group] = get_args(Group), also: Set[str] = _NONE
) -> T:
    """Make settings from these values, with defaults for the rest.

    Only settings in these `groups` of flags, or named in `also`, may be given. Raises UsageError
    for an unknown name, a value of the wrong kind, or settings that contradict each other.
    """
    known = {field.name: field for field in all_fields(config_type)}
    for name in sorted(known.keys() & values.keys()):
        if known[name].flag.group not in groups and name not in also:
            raise UsageError(f"{name}: is a setting of `layertap extract`, but has no effect here; leave it out")
    for name in sorted(values.keys() - known.keys()):
        near = get_close_matches(name, known, 1)
        raise UsageError(f"{name}: there is no such setting" + (f"; do you mean {near[0]}?" if near else ""))
    missing = sorted(name for name, field in known.items() if field.default is MISSING and name not in values)
    if missing:
        raise UsageError(f"{', '.join(missing)}: has no default; give it")
    given = {name: _value(known[name], value) for name, value in values.items()}
    return settings_of(config_type, {name: field.default for name, field in known.items()} | given)


def refuse(values: Mapping[str, Any], reasons: Mapping[str, str]) -> None:
    """Raise UsageError for a given setting that would have no effect, with the reason."""
    for name in sorted(reasons.keys() & values.keys()):
        if values[name]:
            raise UsageError(f"{name}: {reasons[name]}")


def _value(field: Field, value: Any) -> Any:  # noqa: ANN401 - of the field's type, or near it
    """Convert a value to the field's type; raises UsageError if it is of another kind."""
    kind = bare(field.annotation)
    if get_origin(kind) is not tuple:
        return _sound(field.name, kind, value)
    one = isinstance(value, str | os.PathLike) or not hasattr(value, "__iter__")
    several = [value] if one else list(value)
    reads = next((it for it in extras_of(field.annotation) if isinstance(it, PrimitiveConstructorSpec)), None)
    if reads is not None and all(isinstance(word, str) for word in several):
        return reads.instance_from_str(several)
    return tuple(_sound(field.name, get_args(kind)[0], entry) for entry in several)


def _sound(name: str, kind: Any, value: Any) -> Any:  # noqa: ANN401 - of this type
    """Return `value` as one of `kind`; raises UsageError if it is not."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    for one in alternatives(kind):
        if get_origin(one) is Literal and isinstance(value, str) and value in get_args(one):
            return value
        if isinstance(one, type) and isinstance(value, one) and (one is bool or not isinstance(value, bool)):
            return value
        if one in (int, float) and hasattr(value, "__index__") and not isinstance(value, bool):
            return one(operator.index(value))
        if one is float and hasattr(value, "__float__") and not isinstance(value, bool):
            return float(value)
    raise UsageError(f"{name}={value!r}: give {' or '.join(_names(kind))}")


def _names(kind: Any) -> list[str]:  # noqa: ANN401 - a type
    """Return the kinds of values of a type, in words."""
    words = {int: "a whole number", float: "a number", str: "a text", bool: "True or False", type(None): "None"}
    return [
        ", ".join(map(repr, get_args(one))) if get_origin(one) is Literal else words.get(one, str(one))
        for one in alternatives(kind)
    ]
