"""Who says each token of a conversation, by the template's own output, and the ids of
transformers."""

import json
from pathlib import Path

import chat_templates
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layertap.core.columns import ROLES
from layertap.core.records import Conversation
from layertap.errors import PromptError
from layertap.prompts import PromptMaker, load_template, load_tokenizer, parse_grid_encoder
from layertap.prompts.chat import Chat, load_chat_template
from layertap.prompts.marked import marks_of
from layertap.prompts.tokenizer import PromptTokenizer

_TURNS = [
    {"role": "system", "content": " user\n"},  # words that stand elsewhere too
    {"role": "user", "content": "What is user? "},
    {"role": "assistant", "content": "<think>\nuser\n</think>\n\nassistant"},
    {"role": "user", "content": "assistant\n\nuser"},
    {"role": "assistant", "content": "  What is user?"},
]
_TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"a": "number"}}}]
_CALLS = [
    {"role": "user", "content": "2 and 3?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "add", "arguments": {"a": 2, "b": "3"}}}],
    },
    {"role": "tool", "content": "5"},
    {"role": "assistant", "reasoning_content": "five", "content": "It is 5."},
]


@pytest.fixture(scope="module")
def reference(qwen_folder):
    transformers = pytest.importorskip("transformers", reason="transformers is what our ids are compared with")
    return transformers.AutoTokenizer.from_pretrained(qwen_folder)


@pytest.fixture(scope="module")
def makers(qwen_folder, tmp_path_factory):
    """A maker of prompts for each chat template, with Qwen's vocabulary; "own" is Qwen's own."""
    made = {"own": _maker(load_tokenizer(qwen_folder))}
    for name, source in chat_templates.ALL.items():
        folder = tmp_path_factory.mktemp(name)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (folder / file).symlink_to(qwen_folder / file)
        (folder / "chat_template.jinja").write_text(source, encoding="utf-8")
        made[name] = _maker(load_tokenizer(folder))
    return made


def _maker(tokenizer: PromptTokenizer, **settings: object) -> PromptMaker:
    return PromptMaker(tokenizer, load_template(), parse_grid_encoder("MinimalGridEncoder()"), 1, False, 0, **settings)


def _said(maker: PromptMaker, messages, tools=()) -> dict[str, str]:
    """Return what each role says: all its characters together."""
    text = maker.tokenizer.chat.render(Chat(tuple(messages), None, tuple(tools)))
    said = dict.fromkeys(ROLES, "")
    for character, mark in zip(str.__str__(text), marks_of(text), strict=True):
        said[ROLES[mark & 7]] += character
    return said


@pytest.mark.parametrize("name", ["own", *chat_templates.ALL])
@pytest.mark.parametrize("asks", [False, True])
def test_ids_are_those_of_transformers(makers, reference, name, asks):
    template = chat_templates.ALL.get(name)
    expected = reference.apply_chat_template(
        _TURNS, chat_template=template, add_generation_prompt=asks, return_dict=True
    )["input_ids"]
    maker = _maker(makers[name].tokenizer, add_generation_prompt=asks)
    (sample,) = maker.make([(0, Conversation("c", tuple(_TURNS)))])
    assert sample.token_ids.tolist() == expected


@pytest.mark.parametrize("name", ["own", "thinking"])
def test_ids_with_tools_are_those_of_transformers(makers, reference, name):
    expected = reference.apply_chat_template(
        _CALLS, tools=_TOOLS, chat_template=chat_templates.ALL.get(name), return_dict=True
    )["input_ids"]
    (sample,) = makers[name].make([(0, Conversation("c", tuple(_CALLS), tuple(_TOOLS)))])
    assert sample.token_ids.tolist() == expected


@pytest.mark.parametrize(
    ("name", "system", "user", "assistant"),
    [
        ("own", " user\n", "What is user? assistant\n\nuser", _TURNS[2]["content"] + "  What is user?"),
        ("headers", "user", "What is user?assistant\n\nuser", _TURNS[2]["content"] + "What is user?"),
        ("instructions", " user\n", "What is user? assistant\n\nuser", _TURNS[2]["content"] + "What is user?"),
        ("turns", "user", "What is user?assistant\n\nuser", _TURNS[2]["content"] + "What is user?"),
        ("forgetful", " user\n", "What is user? assistant\n\nuser", "\n\nassistant  What is user?"),
        ("thinking", " user\n", "What is user? assistant\n\nuser", "assistant  What is user?"),
    ],
)
def test_each_token_has_the_role_that_says_it(makers, name, system, user, assistant):
    said = _said(makers[name], _TURNS)
    assert (said["system"], said["user"], said["assistant"]) == (system, user, assistant)


@pytest.mark.parametrize("name", ["own", "thinking"])
def test_tokens_have_the_roles_of_their_characters(makers, name):
    """This holds for templates whose own tokens never merge with what is said."""
    maker = makers[name]
    (sample,) = maker.make([(0, Conversation("c", tuple(_TURNS)))])
    roles = sample.columns["role"]
    said = _said(maker, _TURNS)
    for number, role in enumerate(ROLES):
        assert maker.tokenizer.decode(sample.token_ids[roles == number]).split() == said[role].split()


def test_tools_are_the_systems_calls_the_assistants_and_answers_the_tools(makers):
    said = _said(makers["thinking"], _CALLS, _TOOLS)
    assert json.loads(said["system"]) == _TOOLS[0]
    assert said["user"] == "2 and 3?"
    assert said["assistant"] == 'add{"a": 2, "b": "3"}fiveIt is 5.'
    assert said["tool"] == "5"


@given(st.lists(st.text("ab <|>\nuser", min_size=1, max_size=12), min_size=1, max_size=5))
def test_generation_marks_decide_as_in_transformers(makers, reference, contents):
    turns = [{"role": ("user", "assistant")[at % 2], "content": content} for at, content in enumerate(contents)]
    expected = reference.apply_chat_template(
        turns, chat_template=chat_templates.TRAINING, return_dict=True, return_assistant_tokens_mask=True
    )
    (sample,) = makers["training"].make([(0, Conversation("c", tuple(turns)))])
    assert sample.token_ids.tolist() == expected["input_ids"]
    found = sample.columns["role"] == ROLES.index("assistant")
    assert found.astype(int).tolist() == expected["assistant_masks"]


@pytest.mark.whole
@given(st.lists(st.text(max_size=20), min_size=1, max_size=5))
def test_every_character_is_its_messages_or_the_templates(makers, contents):
    """The template is ChatML, which writes contents unchanged."""
    turns = [{"role": ("user", "assistant")[at % 2], "content": content} for at, content in enumerate(contents)]
    shown = _said(makers["own"], [{"role": "system", "content": ""}, *turns])
    assert shown["user"] == "".join(contents[0::2])
    assert shown["assistant"] == "".join(contents[1::2])


_EACH = "{% for m in messages %}<HERE>{% endfor %}"
_SHOUTED = Chat(({"role": "user", "content": "One line,\nStraße"}, {"role": "assistant", "content": "yes\nno"}))


@pytest.mark.parametrize(
    "written",
    [
        "{{ '{}.'.format(m.content) }}",
        "{{ '%s %d' | format(m.content, 3) }}",
        "{{ m.content | upper }}",  # two letters of one: no telling which is which
        "{{ m.content if m.role == 'user' else '{}'.format(m.content) }}",
        "{{ m.content | wordwrap(3) }}",
        "{{ m.content | title }}",
        "{{ m.content.replace('', '-') }}",
    ],
)
def test_a_template_that_loses_what_is_said_is_refused(tmp_path, written):
    chat = load_chat_template(tmp_path, {"chat_template": _EACH.replace("<HERE>", written)})
    with pytest.raises(PromptError, match="in a way that Layertap cannot follow"):
        chat.require_followed(_SHOUTED)


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("{{ m.content | indent(2) }}", "One line,\n  Straßeyes\n  no"),
        ("{% filter indent(1, true) %}{{ m.content }}{% endfilter %}", " One line,\n Straße yes\n no"),
        ("{{ '%s' | format(m.content) }}", "One line,\nStraßeyes\nno"),
        ("{{ '-'.join([m.content]) }}", "One line,\nStraßeyes\nno"),
        ("{{ m.content | safe }}", "One line,\nStraßeyes\nno"),
        ("{{ m.content.swapcase() if m.role != 'user' }}", "YES\nNO"),
        ("{% if m.role == 'user' %}{{ m.content | tojson }}{% endif %}", '"One line,\\nStraße"'),
        ("", ""),  # a role that is left out is no loss
    ],
)
def test_a_template_that_is_followed_is_not(tmp_path, written, text):
    chat = load_chat_template(tmp_path, {"chat_template": _EACH.replace("<HERE>", written)})
    chat.require_followed(_SHOUTED)
    found = chat.render(_SHOUTED)
    assert found == text
    assert all(mark or character.isspace() for character, mark in zip(text, marks_of(found), strict=True))


def test_null_is_as_good_as_absent_as_in_transformers(makers, reference):
    turns = [dict(_CALLS[0]), _CALLS[1] | {"content": None}, _CALLS[2]]
    source = "{% for m in messages %}{{ '\\n' ~ m.content if m.content is defined else '-' }}{% endfor %}"
    expected = reference.apply_chat_template(turns, chat_template=source, tokenize=False)
    assert load_chat_template(Path(), {"chat_template": source}).render(Chat(tuple(turns))) == expected


@pytest.mark.parametrize("name", ["reasoning", "thinking", "reasoning_content"])
def test_reasoning_under_its_other_names(makers, reference, name):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", name: "because", "content": "a"}]
    expected = reference.apply_chat_template(turns, chat_template=chat_templates.THINKING, tokenize=False)
    assert makers["thinking"].tokenizer.chat.render(Chat(tuple(turns))) == expected
    assert "because" in expected


def test_a_template_for_tools_is_taken_where_there_are_tools(tmp_path):
    found = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "{{ tools | tojson }}"}]
    chat = load_chat_template(tmp_path, {"chat_template": found})
    assert chat.render(Chat(())) == "plain"
    assert json.loads(chat.render(Chat((), None, tuple(_TOOLS)))) == _TOOLS
    assert chat.digest != load_chat_template(tmp_path, {"chat_template": "plain"}).digest
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("of a file", encoding="utf-8")
    of_a_file = load_chat_template(tmp_path, {"chat_template": "plain"})
    assert of_a_file.render(Chat((), None, tuple(_TOOLS))) == "of a file"
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_bytes(b"\xff")
    with pytest.raises(PromptError, match=r"tool_use\.jinja: cannot be read"):
        load_chat_template(tmp_path, {"chat_template": "plain"})


def test_a_conversation_that_the_template_refuses_is_refused_with_its_words(makers):
    twice = Conversation("twice", tuple([{"role": "user", "content": "a"}] * 2))
    assert "roles must alternate" in (makers["instructions"].refusal(twice) or "")
    assert makers["own"].refusal(twice) is None


def test_roles_of_other_names_count_as_the_usual_ones(makers):
    turns = [
        {"role": "developer", "content": "D"},
        {"role": "user", "content": "U"},
        {"role": "critic", "content": "C"},
    ]
    said = _said(makers["headers"], turns)
    assert (said["system"], said["user"], said["text"], said["assistant"]) == ("D", "U", "C", "")
