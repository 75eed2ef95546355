"""What is said to the model in one prompt, and the chat text that its tokenizer's template makes.

The template is looked for where `transformers` looks: `chat_template.jinja` beside the tokenizer
(transformers 5 writes that), else `chat_template` in `tokenizer_config.json`, a text or a list of
named ones of which "default" counts. A checkpoint without any gets ChatML, which is what every Qwen
2.5 template writes. The system message is always given: Qwen's templates put in their own, another
one in each release, where it is left out.

What a message says is marked with its role before the template gets it (marked.py), so the roles of
tokens come from the template's own output: a template may strip, cut or move what is said, and put
the system's words into the user's turn.

A prompt without its answer has to end inside the assistant's turn, after the first words of that
turn. So it is rendered up to the generation prompt and the opening is appended. Rendering an
unfinished assistant message instead would close the turn.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from layertap.core.columns import ROLES
from layertap.errors import PromptError
from layertap.prompts.labels import role_bits, roles_in
from layertap.prompts.marked import Marked, concat
from layertap.prompts.sandbox import SandboxedTemplate, chat_environment, compile_template

_CHATML = """\
{% for message in messages %}
{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{%- endif %}
"""
_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


# What a message's role counts as, where it is not one of ROLES by its name.
_ROLE_NAMES = {
    "developer": "system",
    "model": "assistant",
    "function": "tool",
    "ipython": "tool",
    "observation": "tool",
}

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Chat:
    """What is said in one prompt."""

    messages: tuple[Message, ...]
    """Each has a `role`, and `content` or what else the template reads. Texts in it may be marked
    already, as grids are."""
    opening: str | None = None
    """The beginning of one more message, the assistant's, which is left open."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """What the assistant may call, as JSON schemas."""


@dataclass(frozen=True, eq=False)
class ChatTemplate:
    """How a tokenizer writes a chat."""

    template: SandboxedTemplate
    tokens: Mapping[str, str]
    """The named tokens, such as `eos_token`, that the template may use."""

    def render(self, chat: Chat) -> Marked:
        """The chat text, which ends after the last message, or after the opening if there is one.

        Each character is marked with the role that says it. Raises PromptError naming file and line
        where the template fails or refuses the chat, or loses the marks of all that a role says.
        """
        text = self.template.render(
            **self.tokens,
            messages=[_marked_message(message) for message in chat.messages],
            tools=_marked(list(chat.tools), role_bits("system")) if chat.tools else None,
            documents=None,
            add_generation_prompt=chat.opening is not None,
        )
        marked = concat((text, Marked(chat.opening or "").with_bits(role_bits("assistant"))))
        self._require_marks(chat, marked)
        return marked

    def _require_marks(self, chat: Chat, text: Marked) -> None:
        """Refuse a template that writes what a message says in a way that loses its marks."""
        found = roles_in(text)
        for message in chat.messages:
            content = message.get("content")
            if _role(message) in found or not isinstance(content, str) or not content.strip():
                continue
            if content.strip() in text:
                raise PromptError(
                    f"{self.template.filename}: writes what the {message['role']} says, but in a way that Layertap"
                    " cannot follow, so tokens would have no roles; write the content with Jinja's own filters"
                )

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of everything that decides the chat text of given messages."""
        decisive = json.dumps([self.template.source, dict(self.tokens)], sort_keys=True)
        return sha256(decisive.encode("ascii")).hexdigest()


def load_chat_template(folder: Path, config: Mapping[str, Any]) -> ChatTemplate:
    """The chat template of the tokenizer in `folder`, whose `tokenizer_config.json` holds `config`.

    Raises PromptError where the template is malformed, or there are several and none is the
    default.
    """
    source, filename = _find_source(folder, config)
    return ChatTemplate(compile_template(chat_environment(), source, filename), _named_tokens(config))


def _role(message: Message) -> str:
    name = str(message.get("role"))
    name = _ROLE_NAMES.get(name, name)
    return name if name in ROLES else "text"


def _marked_message(message: Message) -> dict[str, Any]:
    bits = role_bits(_role(message))
    return {key: value if key == "role" else _marked(value, bits) for key, value in message.items()}


def _marked(value: Any, bits: int) -> Any:  # noqa: ANN401 - JSON in, JSON out
    """The same value, with every text in it marked, keys of objects among them."""
    match value:
        case str():
            return value.with_bits(bits) if isinstance(value, Marked) else Marked(value, bits)
        case Mapping():
            return {_marked(key, bits): _marked(entry, bits) for key, entry in value.items()}
        case list() | tuple():
            return [_marked(entry, bits) for entry in value]
    return value


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
            raise PromptError(f"{where}: a list of templates of which none is named 'default'")
        case _:
            raise PromptError(f"{where}: holds a {type(found).__name__}; a text or a list of named templates is needed")


def _named_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Each is written as its text, or as an object that holds the text and how to match it."""
    tokens = {}
    for name in _TOKEN_NAMES:
        match config.get(name):
            case str() as token:
                tokens[name] = token
            case {"content": str() as token}:
                tokens[name] = token
    return tokens
