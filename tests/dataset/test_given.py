"""What a program may pass instead of a dataset, and what is refused, with the input's number."""

import numpy as np
import pytest

from layertap.core.records import Conversation, Document, Task, TokenList
from layertap.dataset.given import given_records
from layertap.errors import BadTaskError

MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
TASK = {"train": [{"input": [[1]], "output": [[2]]}], "test": [{"input": [[3]]}]}


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ("a text", Document),
        (MESSAGES, Conversation),
        ([5, 6], TokenList),
        ((5, 6), TokenList),
        (np.array([5, 6]), TokenList),
        (TASK, Task),
        ({"text": "a text"}, Document),
        ({"messages": MESSAGES, "tools": None}, Conversation),
        ({"input_ids": [5, 6]}, TokenList),
    ],
    ids=str,
)
def test_one_alone_is_one_of_several(given: object, kind: type) -> None:
    (alone,), (first, second) = given_records(given), given_records([given, given])
    assert type(alone) is kind
    assert alone == first
    assert (first.task_id, second.task_id) == ("input 0", "input 1")


def test_kinds_may_be_mixed_and_keep_their_ids() -> None:
    mixed = ["a", MESSAGES, [1, 2], TASK | {"task_id": "mine"}, {"id": 7, "text": "b"}]
    assert [record.task_id for record in given_records(iter(mixed))] == ["input 0", "input 1", "input 2", "mine", "7"]
    assert len(list(given_records([TASK | {"task_id": "mine"}] * 2))) == 2


def test_an_array_of_two_dimensions_is_several_lists_of_tokens() -> None:
    found = list(given_records(np.arange(6).reshape(2, 3)))
    assert [record.token_ids for record in found if isinstance(record, TokenList)] == [(0, 1, 2), (3, 4, 5)]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("", "input 1: 'text' is empty"),
        ([], "input 1: is a list that is empty"),
        (3.5, "input 1: is a number"),
        (None, "input 1: is null"),
        ([True, False], "input 1: is a list"),
        ([1, -2], "input 1: 'input_ids': token 2 is -2"),
        ({"train": []}, "input 1: .train. is empty"),
        ({"words": "?"}, "input 1: .*words"),
        ([{"role": "user"}], "input 1: message 1"),
    ],
    ids=str,
)
def test_what_is_no_input_is_named(wrong: object, message: str) -> None:
    with pytest.raises(BadTaskError, match=message):
        list(given_records(["sound", wrong]))


def test_what_is_no_list_at_all_is_refused() -> None:
    with pytest.raises(BadTaskError, match="int is not an input"):
        list(given_records(5))


def test_a_column_of_a_table_is_several_inputs() -> None:
    for column in (np.array(["one", "two"]), np.array(["one", "two"], object)):
        assert [record.task_id for record in given_records(column)] == ["input 0", "input 1"]
