"""The messages of one prompt, and the chat text that the tokenizer's template makes of them.

We look for the template where `transformers` does: in `chat_template.jinja` beside the tokenizer
(which transformers 5 writes), else under `chat_template` in `tokenizer_config.json`, as a text or
as a list of named templates, of which "default" counts. A checkpoint without a template gets
ChatML, the format of every Qwen 2.5 template. We always give a system message, because otherwise
Qwen's templates insert their own, which differs between releases.

Each message is marked with its role before the template gets it (marked.py). So the roles of tokens
come from the template's own output, even if it strips, cuts or moves text, or puts the system's
words into the user's turn.

A prompt without its answer must end inside the assistant's turn, after the turn's first words. So
it is rendered up to the generation prompt, and the opening is appended. Rendering an unfinished
assistant message instead would close the turn.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from layertap.core.columns import ROLES
from layertap.errors import PromptError
from layertap.prompts.labels import role_bits
from layertap.prompts.marked import Marked, concat, loses_marks, with_probes
from layertap.prompts.sandbox import SandboxedTemplate, chat_environment, compile_template

_CHATML = """\
{% for message in messages %}
{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{%- endif %}
"""
_TOKENS_MAP = "special_tokens_map.json"
_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Other variables of a template; a token with such a name does not replace them.
_VARIABLES = {"messages", "tools", "documents", "add_generation_prompt"}


# The role in ROLES for other names of roles.
_ROLE_NAMES = {
    "developer": "system",
    "model": "assistant",
    "function": "tool",
    "ipython": "tool",
    "observation": "tool",
}

_SAID = ("content", "text", "arguments", "reasoning_content", "thinking", "reasoning")

# A message may have its reasoning under these names; the first one present counts, as in
# transformers.
_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Chat:
    """The content of one prompt."""

    messages: tuple[Message, ...]
    """Each has a `role`, and `content` or other keys that the template reads. Texts in it may
    already be marked, as grids are."""
    opening: str | None = None
    """The beginning of a final assistant message, which stays open."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """The functions that the assistant may call, as JSON schemas."""


@dataclass(frozen=True, eq=False)
class ChatTemplate:
    """How a tokenizer writes a chat."""

    template: SandboxedTemplate
    tokens: Mapping[str, str]
    """The named tokens, such as `eos_token`, that the template may use."""
    tool_template: SandboxedTemplate | None = None
    """The template for chats with tools, if the tokenizer has a separate one."""

    def render(self, chat: Chat) -> Marked:
        """Render the chat text, up to the last message, or up to the opening if there is one.

        Each character is marked with the role that says it. Raises PromptError, which names file
        and line, if the template fails or refuses the chat.
        """
        opening = Marked(chat.opening or "").with_bits(role_bits("assistant"))
        return concat((self._render(chat, chat.messages, chat.tools), opening))

    def require_followed(self, chat: Chat) -> None:
        """Raise PromptError if the template writes messages in a way that loses their marks.

        The test puts a character that no text has at the end of each line of a message. Wherever
        the template writes that character, it must be marked. A template that fails on the
        character cannot be tested.
        """
        try:
            text = self._render(chat, [_probed(message) for message in chat.messages], chat.tools)
        except PromptError:
            return
        if loses_marks(text):
            raise PromptError(
                f"{self.template.filename}: writes messages in a way that Layertap cannot follow, so tokens would have"
                " no roles; write them with +, ~, slices, strip, split, replace, join, indent or tojson"
            )

    def _render(self, chat: Chat, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> Marked:
        template = self.tool_template if tools and self.tool_template is not None else self.template
        text = template.render(
            **self.tokens,
            messages=[_marked_message(message) for message in messages],
            tools=_marked(list(tools), role_bits("system")) if tools else None,
            documents=None,
            add_generation_prompt=chat.opening is not None,
        )
        return concat((text,))

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of everything that decides the chat text of given messages."""
        more = [] if self.tool_template is None else [self.tool_template.source]
        decisive = json.dumps([self.template.source, dict(self.tokens), *more], sort_keys=True)
        return sha256(decisive.encode("ascii")).hexdigest()


def load_chat_template(folder: Path, config: Mapping[str, Any]) -> ChatTemplate:
    """Load the chat template of the tokenizer in `folder`, whose `tokenizer_config.json` is
    `config`.

    Raises PromptError if the template is malformed, or if there are several and none is the
    default.
    """
    source, filename = _find_source(folder, config)
    found = _tool_source(folder, config)
    with_tools = None if found is None else compile_template(chat_environment(), *found)
    tokens = _named_tokens(folder, config, source if found is None else f"{source}\n{found[0]}")
    return ChatTemplate(compile_template(chat_environment(), source, filename), tokens, with_tools)


def _role(message: Message) -> str:
    name = str(message.get("role"))
    name = _ROLE_NAMES.get(name, name)
    return name if name in ROLES else "text"


def _marked_message(message: Message) -> dict[str, Any]:
    bits = role_bits(_role(message))
    given = {key: value for key, value in message.items() if value is not None}  # as transformers does
    thoughts = [given[key] for key in _REASONING_KEYS if key in given]
    if thoughts:
        given = {"thinking": thoughts[0], **given, "reasoning_content": thoughts[0]}
    return {key: value if key == "role" else _marked(value, bits) for key, value in given.items()}


def _probed(value: Any, *, said: bool = False) -> Any:  # noqa: ANN401 - JSON in, JSON out
    """Return the message with a probe in each text that it says.

    What a template may test, such as a type, stays unchanged.
    """
    match value:
        case str():
            return with_probes(value) if said else value
        case Mapping():
            return {
                key: _probed(entry, said=said or (key in _SAID and not isinstance(entry, list)))
                for key, entry in value.items()
            }
        case list() | tuple():
            return [_probed(entry, said=said) for entry in value]
    return value


def _marked(value: Any, bits: int) -> Any:  # noqa: ANN401 - JSON in, JSON out
    """Return the value with every text in it marked, including keys of objects."""
    match value:
        case str():
            return value.with_bits(bits) if isinstance(value, Marked) else Marked(value, bits)
        case Mapping():
            return {_marked(key, bits): _marked(entry, bits) for key, entry in value.items()}
        case list() | tuple():
            return [_marked(entry, bits) for entry in value]
    return value


def _tool_source(folder: Path, config: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the template that transformers uses for chats with tools: the one named "tool_use"."""
    path = folder / "additional_chat_templates" / "tool_use.jinja"
    try:
        return path.read_text(encoding="utf-8"), str(path)
    except (OSError, UnicodeDecodeError) as error:
        if path.exists():
            raise PromptError(f"{path}: cannot be read: {error}") from error
    entries = config.get("chat_template")
    for entry in entries if isinstance(entries, list) else []:
        match entry:
            case {"name": "tool_use", "template": str() as source}:
                return source, f"{folder / 'tokenizer_config.json'}: chat_template"
    return None


def _find_source(folder: Path, config: Mapping[str, Any]) -> tuple[str, str]:
    path = folder / "chat_template.jinja"
    try:
        return path.read_text(encoding="utf-8"), str(path)
    except FileNotFoundError:
        return _source_in_config(config.get("chat_template"), f"{folder / 'tokenizer_config.json'}: chat_template")
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"{path}: cannot be read: {error}") from error


def _source_in_config(found: object, where: str) -> tuple[str, str]:
    match found:
        case None:
            return _CHATML, "ChatML"
        case str():
            return found, where
        case list():
            for entry in found:
                match entry:
                    case {"name": "default", "template": str() as source}:
                        return source, where
            raise PromptError(f"{where}: none of the templates in the list is named 'default'")
        case _:
            raise PromptError(f"{where}: holds a {type(found).__name__}, not a text or a list of named templates")


def _named_tokens(folder: Path, config: Mapping[str, Any], source: str) -> dict[str, str]:
    """Return the usual tokens in `config`, and the others of transformers that the template uses.

    A name that the template does not use decides nothing, so the digest must not depend on it.
    """
    usual = {name: text for name in _TOKEN_NAMES if (text := _token_text(config.get(name))) is not None}
    found = _all_named(config, _read_tokens_map(folder, config))
    said = set(re.findall(r"\w+", source)) - _VARIABLES
    kept = {name: text for name, text in usual.items() if name not in said}
    return kept | {name: text for name, text in found.items() if name in said}


def _all_named(config: Mapping[str, Any], tokens_map: Mapping[str, Any]) -> dict[str, str]:
    """Merge as transformers does: the map decides the usual names, `config` the others."""
    usual = {name: value for name, value in {**config, **tokens_map}.items() if name in _TOKEN_NAMES}
    others = {name: value for name, value in {**tokens_map, **config}.items() if name.endswith("_token")}
    extra = [file.get("extra_special_tokens") for file in (config, tokens_map)]
    merged = {**others, **usual}
    for tokens in (config.get("model_specific_special_tokens"), *extra):
        merged |= tokens if isinstance(tokens, dict) else {}
    return {name: text for name, value in merged.items() if (text := _token_text(value)) is not None}


def _token_text(value: object) -> str | None:
    """Return a token's text; it is given as a text, or as an object with the text and matching
    rules.
    """
    match value:
        case (str() as text) | {"content": str() as text}:
            return text
    return None


def _read_tokens_map(folder: Path, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Read `special_tokens_map.json`, as transformers does if `config` has no added tokens."""
    path = folder / _TOKENS_MAP
    if "added_tokens_decoder" in config or not path.exists():
        return {}
    try:
        tokens = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PromptError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(tokens, dict):
        raise PromptError(f"{path}: holds a {type(tokens).__name__}, not an object")
    return tokens
