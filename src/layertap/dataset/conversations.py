"""Check conversations: messages with roles, in the two published formats.

    {"messages": [{"role": "user", "content": "..."}, ...], "tools": [...]}
    {"conversations": [{"from": "human", "value": "..."}, ...]}          ShareGPT

Either list may hold either kind of message, and each list may be a JSON string. `tools` are the
functions that the assistant may call. A message keeps its other keys for the tokenizer's chat
template (`tool_calls`, `reasoning_content`, `name`), except for nulls: a table has one column for
all messages, and null means that this message does not have the key. The content may be null only
if the message calls tools.

A ShareGPT row may have the system's text beside the list, under `system`. It becomes the first
message. If there is also a system message, both texts must be equal.

The template decides which roles are valid. So we only translate the old names (`from`), and refuse
unknown ones.
"""

import json
from collections.abc import Mapping
from typing import Any

from layertap.core.records import Conversation
from layertap.dataset.rows import kind_name, list_in, sound_text
from layertap.errors import BadTaskError

_ROLE_OF = {"human": "user", "gpt": "assistant", "function": "tool", "observation": "tool", "function_response": "tool"}
_KEPT = ("system", "user", "assistant", "tool")
_CALLS = ("tool_calls", "function_call")


def conversation_from_row(raw: object, task_id: str) -> Conversation:
    """Read the conversation under `messages` or `conversations`; raises BadTaskError."""
    key = next((key for key in ("messages", "conversations") if isinstance(raw, dict) and key in raw), None)
    if not isinstance(raw, dict) or key is None:
        raise BadTaskError(f"is {kind_name(raw)} without 'messages'")
    messages = list_in(raw, key)
    if not messages:
        raise BadTaskError(f"{key!r} is empty")
    tools = list_in(raw, "tools") if raw.get("tools") else []
    for number, tool in enumerate(tools, 1):
        if not isinstance(tool, dict):
            raise BadTaskError(f"tool {number} is {kind_name(tool)}, not an object that describes a function")
    checked = tuple(_message(message, f"message {number}") for number, message in enumerate(messages, 1))
    checked = (*_system_beside(raw, checked), *checked)
    _require_json(checked, "its messages hold")
    _require_json(tools, "its tools hold")
    return Conversation(task_id, checked, tuple(tools))


def _system_beside(raw: Mapping[str, object], messages: tuple[Mapping[str, Any], ...]) -> list[Mapping[str, Any]]:
    """Return the system message that a row has beside its messages, unless these include it."""
    beside = raw.get("system")
    if beside is None or beside == "":
        return []
    text = sound_text(beside, "'system'", "a text")
    said = [message["content"] for message in messages if message["role"] == "system"]
    if said and text not in said:
        raise BadTaskError("'system' differs from the system message; keep one of them")
    return [] if said else [{"role": "system", "content": text}]


def _message(raw: object, where: str) -> Mapping[str, Any]:
    if not isinstance(raw, dict):
        raise BadTaskError(f"{where} is {kind_name(raw)}, not an object with 'role' and 'content'")
    given = {key: value for key, value in raw.items() if value is not None}
    if "role" in given:
        role, content = sound_text(given.pop("role"), f"{where}: 'role'", "a text"), given.pop("content", None)
    elif "from" in given:
        role, content = _role_of(given.pop("from"), where), given.pop("value", None)
    else:
        raise BadTaskError(f"{where} has neither 'role' nor 'from'")
    if not isinstance(content, str | list) and not (content is None and any(call in given for call in _CALLS)):
        raise BadTaskError(f"{where}: the content is {kind_name(content)}, not a text")
    return {"role": role, "content": content, **given}


def _role_of(value: object, where: str) -> str:
    role = _ROLE_OF.get(value, value) if isinstance(value, str) else value
    if not isinstance(role, str) or role not in _KEPT:
        known = ", ".join((*_ROLE_OF, *_KEPT))
        raise BadTaskError(f"{where}: 'from' is {value!r}; use one of {known}")
    return role


def _require_json(value: object, what: str) -> None:
    """Raise BadTaskError for values that JSON or UTF-8 cannot write, such as bytes from a table."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadTaskError(f"{what} half a surrogate pair") from error
    except (TypeError, ValueError) as error:
        raise BadTaskError(f"{what} something that is not JSON: {error}") from error
