"""JSON, read more strictly than `json.loads` does, with every failure as one sentence.

`json.loads` raises four kinds of errors, and of a key that stands twice it silently keeps the last value: in a file
{id: task} that would lose a task. Finding this out costs one Python call per object, little beside its grids.
"""

import json
import reprlib

from layertap.errors import BadTaskError

_NAMES = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int: "a number",
    float: "a number",
    bool: "a boolean",
    type(None): "null",
}


def parse(data: bytes) -> object:
    """The one JSON value in `data` (UTF-8, a byte-order mark allowed); BadTaskError says why there is none."""
    try:
        return json.loads(data.decode("utf-8-sig"), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise BadTaskError(f"is not UTF-8 text: {error.reason} at byte {error.start + 1}") from error
    except json.JSONDecodeError as error:
        line = f"line {error.lineno} " if b"\n" in data.strip() else ""
        raise BadTaskError(f"is not JSON: {error.msg} at {line}column {error.colno}") from error
    except ValueError as error:  # a whole number of thousands of digits
        raise BadTaskError(f"holds a number that cannot be read: {error}") from error
    except RecursionError as error:
        raise BadTaskError("is not a task: its lists are nested too deeply") from error


def may_go_on(data: bytes) -> bool:
    """Whether whole lines of text are one JSON value so far: complete, or broken off only because they end."""
    try:
        text = data.decode("utf-8-sig")
        json.loads(text)
    except json.JSONDecodeError as error:
        return error.pos >= len(text)
    except (ValueError, RecursionError):
        return False
    return True


def kind_name(value: object) -> str:
    """What JSON calls this value, with its article: "an object", "a list", ..."""
    return _NAMES[type(value)]


def shown(value: object) -> str:
    """The value itself, shortened to fit into a message."""
    return reprlib.repr(value)


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise BadTaskError(f"has the key {shown(twice)} twice in one object")
    return made
