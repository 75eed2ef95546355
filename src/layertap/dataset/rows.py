"""One record: JSON text in, one checked record out, or one sentence about the first thing that is
wrong.

JSON is read more strictly than by `json.loads`, which raises four kinds of errors, and silently
keeps the last value of a key that comes twice: in a file {id: task} that would lose a task. The
check costs one Python call per object, which is little beside its grids.

`tasks` and `conversations` check what has more to it. A null is the same as an absent key: tables
write what a row does not have that way.

`as_row` is the way back. Whatever shape a record was read in, it is written in the simplest one,
with its id beside it. Reading the row back gives an equal record, also with the id that its old
place gave it.
"""

import json
import reprlib
from collections.abc import Mapping
from typing import Any

from layertap.core.records import Conversation, Document, GoodRecord, Grid, Pair, TokenList
from layertap.errors import BadTaskError

_KIND_NAMES: Mapping[type, str] = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int: "a number",
    float: "a number",
    bool: "a boolean",
    type(None): "null",
}


def parse(data: bytes) -> object:
    """The one JSON value in `data`, which is UTF-8 with or without byte-order mark."""
    text = decode(data)
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno} " if b"\n" in data.strip() else ""
        raise BadTaskError(f"is not JSON: {error.msg} at {line}column {error.colno}") from error
    except ValueError as error:  # a whole number of thousands of digits
        raise BadTaskError(f"holds a number that cannot be read: {error}") from error
    except RecursionError as error:
        raise BadTaskError("is not a task: its lists are nested too deeply") from error


def _refuse_constant(name: str) -> object:
    """Python reads NaN and Infinity, which no JSON has; what is read is written again elsewhere."""
    raise BadTaskError(f"is not JSON: {name} is no number there")


def decode(data: bytes) -> str:
    """The text in `data`, which is UTF-8 with or without byte-order mark; raises BadTaskError."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadTaskError(f"is not UTF-8 text: {error.reason} at byte {error.start + 1}") from error


def kind_name(value: object) -> str:
    """What JSON calls this value, with its article: "an object", "a list", ..."""
    return _KIND_NAMES.get(type(value)) or f"of the kind {type(value).__name__}"


def without_nulls(value: object) -> object:
    """`value`; if it is an object, without the keys that are null."""
    return {key: entry for key, entry in value.items() if entry is not None} if isinstance(value, dict) else value


def list_in(raw: Mapping[str, object], key: str) -> list[Any]:
    """The list under a key, which may stand there as JSON; raises BadTaskError."""
    value = raw[key]
    if isinstance(value, str):
        value = _parsed_text(value, key)
    if not isinstance(value, list):
        raise BadTaskError(f"{key!r} is {kind_name(value)}, not a list")
    return value


def document_from_row(raw: object, task_id: str) -> Document:
    """The document in `{"text": ...}`. An empty text is refused: it has no tokens to read."""
    if not isinstance(raw, dict) or "text" not in raw:
        raise BadTaskError(f"is {kind_name(raw)} without 'text'")
    return Document(task_id, sound_text(raw["text"], "'text'", "a text"))


def tokens_from_row(raw: object, task_id: str) -> TokenList:
    """The tokens in `{"input_ids": [...]}` or `{"token_ids": [...]}`; at least one.

    Padding is left out where an `attention_mask` beside them says what is padding.
    """
    key = next((key for key in ("input_ids", "token_ids") if isinstance(raw, dict) and key in raw), None)
    if not isinstance(raw, dict) or key is None:
        raise BadTaskError(f"is {kind_name(raw)} without 'input_ids'")
    ids = list_in(raw, key)
    if not ids:
        raise BadTaskError(f"{key!r} is empty")
    first, end = _unmasked(raw, len(ids))
    ids = ids[first:end]
    if set(map(type, ids)) != {int} or min(ids) < 0:
        number, wrong = next((n, it) for n, it in enumerate(ids, first + 1) if type(it) is not int or it < 0)
        raise BadTaskError(f"{key!r}: token {number} is {reprlib.repr(wrong)}, not the number of a token (0 or more)")
    return TokenList(task_id, tuple(ids))


def _unmasked(raw: Mapping[str, object], count: int) -> tuple[int, int]:
    """Where the tokens begin and end that are no padding."""
    if raw.get("attention_mask") is None:
        return 0, count
    mask = list_in(raw, "attention_mask")
    if len(mask) != count:
        raise BadTaskError(f"'attention_mask' has {len(mask)} values, and there are {count} tokens")
    wrong = next((number for number, it in enumerate(mask, 1) if type(it) is not int or it not in (0, 1)), None)
    if wrong is not None:
        raise BadTaskError(f"'attention_mask': value {wrong} is {reprlib.repr(mask[wrong - 1])}, neither 0 nor 1")
    if 1 not in mask:
        raise BadTaskError("'attention_mask' is 0 for every token")
    first, end = mask.index(1), count - mask[::-1].index(1)
    if 0 in mask[first:end]:
        hole = mask.index(0, first) + 1
        raise BadTaskError(f"'attention_mask' is 0 for token {hole}, in the middle; padding is at the beginning or end")
    return first, end


def sound_text(value: object, where: str, wanted: str) -> str:
    """`value`, if it is a text of whole characters; else BadTaskError that calls it `where`."""
    if not isinstance(value, str):
        raise BadTaskError(f"{where} is {kind_name(value)}, not {wanted}")
    if not value:
        raise BadTaskError(f"{where} is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can spell it, UTF-8 and tokenizers cannot
        raise BadTaskError(f"{where} has half a surrogate pair at character {error.start + 1}") from error
    return value


def as_row(record: GoodRecord) -> dict[str, Any]:
    """The JSON object that `read_records` reads as an equal record."""
    row: dict[str, Any] = {"task_id": record.task_id}
    match record:
        case Document():
            return row | {"text": record.text}
        case TokenList():
            return row | {"input_ids": list(record.token_ids)}
        case Conversation():
            return row | {"messages": list(record.messages)} | ({"tools": list(record.tools)} if record.tools else {})
    return row | {"train": _raw_pairs(record.train), "test": _raw_pairs(record.test)}


def _raw_pairs(pairs: tuple[Pair, ...]) -> list[dict[str, Grid]]:
    return [
        {"input": pair.input} if pair.output is None else {"input": pair.input, "output": pair.output} for pair in pairs
    ]


def _parsed_text(text: str, key: str) -> object:
    try:
        return parse(text.encode("utf-8", "surrogatepass"))
    except BadTaskError as error:
        raise BadTaskError(f"{key!r} is a text that {error}") from error


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise BadTaskError(f"has the key {reprlib.repr(twice)} twice in one object")
    return made
