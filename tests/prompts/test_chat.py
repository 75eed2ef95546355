import json

import pytest

from layertap.errors import PromptError
from layertap.prompts.chat import Chat, load_chat_template


def _turn(role, content):
    return {"role": role, "content": content}


_ASKED = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
_TURNS = _turn("system", "S"), _turn("user", "U")
_WITH_ANSWER = Chat((*_TURNS, _turn("assistant", "### Output\n1")))
_WITHOUT_ANSWER = Chat(_TURNS, opening="### Output\n")
_SOURCE = "{% for m in messages %}[{{ m.role }}:{{ m.content }}]{% endfor %}{% if add_generation_prompt %}[{% endif %}"


def test_chatml_where_there_is_no_template(tmp_path):
    chat = load_chat_template(tmp_path, {})
    assert chat.render(_WITH_ANSWER) == _ASKED + "### Output\n1<|im_end|>\n"
    assert chat.render(_WITHOUT_ANSWER) == _ASKED + "### Output\n"
    assert chat.render(Chat(_TURNS, opening="")) == _ASKED


def test_chatml_is_what_the_qwen_template_writes(tmp_path, qwen_folder):
    config = json.loads((qwen_folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    chatml, qwen = load_chat_template(tmp_path, {}), load_chat_template(tmp_path, config)
    for conversation in (_WITH_ANSWER, _WITHOUT_ANSWER):
        assert chatml.render(conversation) == qwen.render(conversation)


@pytest.mark.parametrize(
    "found",
    [_SOURCE, [{"name": "tool_use", "template": "no"}, {"name": "default", "template": _SOURCE}]],
    ids=["text", "list of named templates"],
)
def test_template_in_the_config(tmp_path, found):
    chat = load_chat_template(tmp_path, {"chat_template": found})
    assert chat.render(_WITH_ANSWER) == "[system:S][user:U][assistant:### Output\n1]"
    assert chat.render(_WITHOUT_ANSWER) == "[system:S][user:U][### Output\n"


def test_a_file_of_its_own_wins_over_the_config(tmp_path):
    (tmp_path / "chat_template.jinja").write_text(_SOURCE, encoding="utf-8")
    chat = load_chat_template(tmp_path, {"chat_template": "no"})
    assert chat.render(_WITHOUT_ANSWER) == "[system:S][user:U][### Output\n"


def test_named_tokens_reach_the_template(tmp_path):
    tokens = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}, "unk_token": None}
    chat = load_chat_template(tmp_path, {"chat_template": "{{ bos_token }}{{ eos_token }}{{ unk_token }}"} | tokens)
    assert chat.render(_WITH_ANSWER) == "<s></s>"


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([{"name": "tool_use", "template": "x"}], "none is named 'default'"),
        (3, "holds a int"),
        ("a\n{% if %}", "tokenizer_config.json: chat_template, line 2"),
    ],
)
def test_malformed_templates_are_refused(tmp_path, found, message):
    with pytest.raises(PromptError, match=message):
        load_chat_template(tmp_path, {"chat_template": found})


def test_a_template_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(PromptError, match=r"chat_template\.jinja: cannot be read"):
        load_chat_template(tmp_path, {})


def test_digest_follows_template_and_tokens(tmp_path):
    settings = [{}, {"chat_template": "a"}, {"chat_template": "b"}, {"chat_template": "a", "eos_token": "c"}]
    assert len({load_chat_template(tmp_path, config).digest for config in settings}) == len(settings)
