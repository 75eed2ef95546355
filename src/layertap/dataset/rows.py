"""Turn JSON text into one checked record, or into one sentence about the first error.  JSON is read
more strictly than with `json.loads`, which raises four kinds of errors, and silently keeps the last
value of a repeated key: in a file {id: task} that would lose a task. The check costs one Python
call per object, which is little compared with its grids.  `tasks` and `conversations` check the
larger kinds. A null equals an absent key, because tables write missing values as null.  `as_row`
converts back. It writes any record in the simplest format, with its id. Reading the row gives an
equal record, even if its id came from a file name or a number.
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
    """Parse the one JSON value in `data`, UTF-8 with or without a byte-order mark."""
    text = decode(data)
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno} " if b"\n" in data.strip() else ""
        raise BadTaskError(f"is not JSON: {error.msg} at {line}column {error.colno}") from error
    except ValueError as error:  # an integer with thousands of digits
        raise BadTaskError(f"holds a number that cannot be read: {error}") from error
    except RecursionError as error:
        raise BadTaskError("is not a task: its lists are nested too deeply") from error


def _refuse_constant(name: str) -> object:
    """Refuse NaN and Infinity: Python reads them, but they are not JSON and cannot be rewritten."""
    raise BadTaskError(f"is not JSON: {name} is not a JSON number")


def decode(data: bytes) -> str:
    """Decode `data`, UTF-8 with or without a byte-order mark; raises BadTaskError."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadTaskError(f"is not UTF-8 text: {error.reason} at byte {error.start + 1}") from error


def kind_name(value: object) -> str:
    """Return JSON's name for this kind of value, with its article: "an object", "a list", ..."""
    return _KIND_NAMES.get(type(value)) or f"of the kind {type(value).__name__}"


def without_nulls(value: object) -> object:
    """Return `value`; if it is an object, without keys that are null."""
    return {key: entry for key, entry in value.items() if entry is not None} if isinstance(value, dict) else value


def list_in(raw: Mapping[str, object], key: str) -> list[Any]:
    """Return the list under a key, which may be a JSON string; raises BadTaskError."""
    value = raw[key]
    if isinstance(value, str):
        value = _parsed_text(value, key)
    if not isinstance(value, list):
        raise BadTaskError(f"{key!r} is {kind_name(value)}, not a list")
    return value


def document_from_row(raw: object, task_id: str) -> Document:
    """Read the document in `{"text": ...}`. An empty text is refused, because it has no tokens."""
    if not isinstance(raw, dict) or "text" not in raw:
        raise BadTaskError(f"is {kind_name(raw)} without 'text'")
    return Document(task_id, sound_text(raw["text"], "'text'", "a text"))


def tokens_from_row(raw: object, task_id: str) -> TokenList:
    """Read the tokens in `{"input_ids": [...]}` or `{"token_ids": [...]}`; at least one.

    An `attention_mask` beside them marks padding, which is left out.
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
    """Return where the tokens without padding begin and end."""
    if raw.get("attention_mask") is None:
        return 0, count
    mask = list_in(raw, "attention_mask")
    if len(mask) != count:
        raise BadTaskError(f"'attention_mask' has {len(mask)} values, but there are {count} tokens")
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
    """Return `value` if it is a text of whole characters; else BadTaskError that names `where`."""
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
    """Return the JSON object that `read_records` reads as an equal record."""
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
