"""Records that a program gives, in place of a dataset: what `layertap.Model.read` takes.

    "a text"                                      a document
    [{"role": "user", "content": "hi"}, ...]      a conversation
    [785, 3974, ...], or an array of integers     token ids
    {"train": [...], "test": [...]}               an ARC task, and any other row that a dataset has

One of these alone is taken for a list of one, since a loop over the characters of a text is never
meant. Ids need not differ here: a program may well read one task twice.
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
    """The record of each input, called by its id, or else `input 0`, `input 1`, ...

    Raises BadTaskError, which says which input is none, and why.
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
    """The inputs, where one alone may be given."""
    alone = isinstance(inputs, str | Mapping) or _is_numbers(inputs)
    if isinstance(inputs, list | tuple) and inputs:
        alone = all(map(_is_token, inputs)) or all(map(_is_message, inputs))
    if not alone and not isinstance(inputs, Iterable):
        raise BadTaskError(f"{type(inputs).__name__} is no input; give texts, conversations, token ids or ARC tasks")
    return [inputs] if alone or not isinstance(inputs, Iterable) else inputs


def _is_numbers(inputs: object) -> bool:
    """Whether it is an array of one axis that holds numbers; one of texts, or a column of a table,
    is several inputs.
    """
    return getattr(inputs, "ndim", None) == 1 and all(isinstance(value, int | float) for value in _as_lists(inputs))


def _is_token(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_message(value: object) -> bool:
    return isinstance(value, Mapping) and bool(value.keys() & {"role", "from"})


def _as_lists(given: object) -> Any:  # noqa: ANN401 - JSON, as far as it is sound
    """An array, of whichever library, as the list that it is."""
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
