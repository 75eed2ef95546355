"""Records that a program gives instead of a dataset: the inputs of `layertap.Model.read`.

    "a text"                                      a document
    [{"role": "user", "content": "hi"}, ...]      a conversation
    [785, 3974, ...], or an array of integers     token ids
    {"train": [...], "test": [...]}               an ARC task, or any other row of a dataset

A single input is treated as a list of one, because nobody wants a loop over the characters of a
text. Ids need not be unique here: a program may read one task twice.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from layertap.core.records import BadTask, GoodRecord
from layertap.dataset.columns import RawRecord, plain, record_of_row
from layertap.dataset.records import check_value, given_id
from layertap.dataset.rows import kind_name
from layertap.errors import BadTaskError


def given_records(inputs: object) -> Iterator[GoodRecord]:
    """Yield the record of each input; without an id of its own it is `input 0`, `input 1`, ...

    Raises BadTaskError, which names the bad input and the reason.
    """
    for number, given in enumerate(_several(inputs)):
        where = f"input {number}"
        raw = _raw_record(where, _as_lists(given))
        try:
            if isinstance(raw, BadTask):
                raise BadTaskError(raw.reason)
            yield check_value(raw.kind, raw.value, given_id(raw) or where)
        except BadTaskError as error:
            raise BadTaskError(f"{where}: {error}") from error


def _several(inputs: object) -> Iterable[object]:
    """Return the inputs as several, also if only one is given."""
    alone = isinstance(inputs, str | Mapping) or _is_numbers(inputs)
    if isinstance(inputs, list | tuple) and inputs:
        alone = all(map(_is_token, inputs)) or all(map(_is_message, inputs))
    if not alone and not isinstance(inputs, Iterable):
        raise BadTaskError(
            f"{type(inputs).__name__} is not an input; give texts, conversations, token ids or ARC tasks"
        )
    return [inputs] if alone or not isinstance(inputs, Iterable) else inputs


def _is_numbers(inputs: object) -> bool:
    """Return whether it is a one-dimensional array of numbers.

    An array of texts, or a column of a table, is several inputs.
    """
    return getattr(inputs, "ndim", None) == 1 and all(isinstance(value, int | float) for value in _as_lists(inputs))


def _is_token(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_message(value: object) -> bool:
    return isinstance(value, Mapping) and bool(value.keys() & {"role", "from"})


def _as_lists(given: object) -> Any:  # noqa: ANN401 - JSON, if it is valid
    """Convert an array of any library to a list."""
    return given.tolist() if hasattr(given, "tolist") else given


def _raw_record(where: str, given: object) -> RawRecord | BadTask:
    if isinstance(given, str):
        return RawRecord(where, "text", {"text": given}, None)
    if isinstance(given, Mapping):
        return record_of_row(where, plain(given, None), None)
    if isinstance(given, list | tuple) and given and all(map(_is_token, given)):
        return RawRecord(where, "tokens", {"input_ids": list(map(int, given))}, None)
    if isinstance(given, list | tuple) and given and all(map(_is_message, given)):
        return RawRecord(where, "chat", plain({"messages": list(given)}, None), None)
    empty = " that is empty" if isinstance(given, list | tuple) and not given else ""
    return BadTask(where, None, f"is {kind_name(given)}{empty}; give a text, messages with roles, token ids or a task")
