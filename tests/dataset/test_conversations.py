"""Conversations in the two published shapes, and the messages about malformed ones."""

import json
from datetime import date
from typing import Any

import pytest

from layertap.core.records import Conversation
from layertap.dataset.conversations import conversation_from_row
from layertap.errors import BadTaskError

_USER = {"role": "user", "content": "Hello there"}
_ANSWER = {"role": "assistant", "content": "Good day"}
_CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": None}}}
_TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}


def read(**row: Any) -> Conversation:
    return conversation_from_row(row, "a")


def test_messages_are_kept_as_they_are() -> None:
    thinking = _ANSWER | {"reasoning_content": "Be polite.", "weight": 0.5}
    parts = {"role": "user", "content": [{"type": "text", "text": "x"}]}
    silent = {"role": "system", "content": ""}
    assert read(messages=[silent, _USER, thinking, parts]).messages == (silent, _USER, thinking, parts)


def test_older_names_are_the_same_conversation() -> None:
    older = [
        {"from": "system", "value": "Be kind."},
        {"from": "human", "value": "Hello there"},
        {"from": "gpt", "value": "Good day", "weight": 1},
        {"from": "observation", "value": "42"},
    ]
    newer = [
        {"role": "system", "content": "Be kind."},
        _USER,
        _ANSWER | {"weight": 1},
        {"role": "tool", "content": "42"},
    ]
    assert read(conversations=older) == read(messages=newer) == read(conversations=newer) == read(messages=older)


def test_a_list_may_be_written_as_json() -> None:
    assert read(messages=json.dumps([_USER]), tools=json.dumps([_TOOL])) == read(messages=[_USER], tools=[_TOOL])
    assert read(messages=[_USER], tools=[_TOOL]).tools == (_TOOL,)
    assert read(messages=[_USER], tools=None) == read(messages=[_USER], tools="") == read(messages=[_USER], tools="[]")


def test_nulls_of_a_table_are_no_part_of_a_message_but_a_call_has_a_null_content() -> None:
    calling = {"role": "assistant", "content": None, "tool_calls": [_CALL]}
    assert read(messages=[{**_USER, "tool_calls": None, "name": None}]).messages == (_USER,)
    assert read(messages=[calling]) == read(messages=[{"role": "assistant", "tool_calls": [_CALL]}])
    assert read(messages=[calling]).messages == (calling,)


def test_a_system_text_beside_the_messages_is_the_first_of_them() -> None:
    system, older = {"role": "system", "content": "Be kind."}, [{"from": "human", "value": "Hello there"}]
    assert read(conversations=older, system="Be kind.").messages == (system, _USER)
    assert read(messages=[_USER], system="Be kind.") == read(messages=[system, _USER], system="Be kind.")
    assert read(messages=[system, _USER], system="") == read(messages=[system, _USER], system=None)
    assert read(messages=[_USER], system="").messages == (_USER,)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, "is an object without 'messages'"),
        ({"messages": []}, "'messages' is empty"),
        ({"messages": "[{"}, "'messages' is a text that is not JSON: .*"),
        ({"messages": {"role": "user"}}, "'messages' is an object, not a list"),
        ({"messages": [_USER, "x"]}, "message 2 is a text, not an object with 'role' and 'content'"),
        ({"messages": [{"content": "x"}]}, "message 1 has neither 'role' nor 'from'"),
        ({"messages": [{"role": 5, "content": "x"}]}, "message 1: 'role' is a number, not a text"),
        ({"messages": [{"role": "user"}]}, "message 1: the content is null, not a text"),
        ({"messages": [{"role": "user", "content": 5}]}, "message 1: the content is a number, not a text"),
        ({"conversations": [{"from": "bot", "value": "x"}]}, "message 1: 'from' is 'bot'; use one of human, gpt, .*"),
        ({"conversations": [{"from": [], "value": "x"}]}, r"message 1: 'from' is \[\]; use one of human, gpt, .*"),
        (
            {"messages": [{**_USER, "day": date(2026, 1, 1)}]},
            "its messages hold something that is not JSON: .* date .*",
        ),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "its messages hold half a surrogate pair"),
        (
            {"conversations": [{"from": "system", "value": "Be brief."}], "system": "Be kind."},
            "'system' differs from the system message; keep one of them",
        ),
        ({"messages": [_USER], "system": 5}, "'system' is a number, not a text"),
        ({"messages": [_USER], "tools": ["x"]}, "tool 1 is a text, not an object that describes a function"),
    ],
)
def test_a_malformed_conversation_is_named_with_its_place(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadTaskError, match=f"^{reason}$"):
        conversation_from_row(row, "a")
