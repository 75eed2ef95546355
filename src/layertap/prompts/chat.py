"""What is said to the model in one prompt, and the chat text that its tokenizer's template makes.

The template is looked for where `transformers` looks: `chat_template.jinja` beside the tokenizer
(transformers 5 writes that), else `chat_template` in `tokenizer_config.json`, a text or a list of
named ones of which "default" counts. A checkpoint without any gets ChatML, which is what every Qwen
2.5 template writes. The system message is always given: Qwen's templates put in their own, another
one in each release, where it is left out.

A prompt without its answer has to end inside the assistant's turn, after the first words of that
turn. So it is rendered up to the generation prompt and the opening is appended. Rendering an
unfinished assistant message instead would close the turn.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from layertap.errors import PromptError
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


@dataclass(frozen=True)
class Turn:
    """What one role says."""

    role: str
    content: str


@dataclass(frozen=True)
class Conversation:
    """The turns of one prompt; `opening` begins one more, the assistant's, and leaves it open."""

    turns: tuple[Turn, ...]
    opening: str | None = None


@dataclass(frozen=True, eq=False)
class ChatTemplate:
    """How a tokenizer writes a conversation."""

    template: SandboxedTemplate
    tokens: Mapping[str, str]
    """The named tokens, such as `eos_token`, that the template may use."""

    def render(self, conversation: Conversation) -> str:
        """The chat text, which ends after the last turn, or after the opening if there is one.

        Raises PromptError naming file and line where the template fails or refuses the
        conversation.
        """
        opens = conversation.opening is not None
        messages = [asdict(turn) for turn in conversation.turns]
        text = self.template.render(**self.tokens, messages=messages, add_generation_prompt=opens)
        return text + (conversation.opening or "")

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
