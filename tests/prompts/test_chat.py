import json

import pytest
import transformers

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


_NAMES = ("bos_token", "eos_token", "image_token", "boi_token", "audio_token", "unk_token", "pad_token")
_ALL = "|".join(f"{{{{ {name} }}}}" for name in _NAMES)
_ADDED = {"256": {"content": "<|endoftext|>", "special": True}}


@pytest.mark.parametrize(
    ("config", "tokens_map"),
    [
        ({}, {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}}),
        ({"bos_token": "<a>", "unk_token": "<u>"}, {"bos_token": "<b>", "unk_token": None}),
        ({"bos_token": "<a>", "added_tokens_decoder": _ADDED}, {"bos_token": "<b>"}),
        ({"image_token": "<i>", "boi_token": "<j>", "extra_special_tokens": {"audio_token": "<k>"}}, None),
        ({"image_token": "<i>"}, {"image_token": "<j>", "audio_token": "<k>"}),
        ({"extra_special_tokens": {"image_token": "<i>"}}, {"extra_special_tokens": {"image_token": "<j>"}}),
        ({"extra_special_tokens": ["<x>"], "model_specific_special_tokens": {"image_token": "<i>"}}, None),
        ({"added_tokens_decoder": _ADDED, "image_token": "<i>"}, {"audio_token": "<k>"}),
    ],
)
def test_templates_get_the_named_tokens_of_transformers(byte_folder, config, tokens_map):
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": _ALL} | config
    (byte_folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    if tokens_map is not None:
        (byte_folder / "special_tokens_map.json").write_text(json.dumps(tokens_map), encoding="utf-8")
    theirs = transformers.AutoTokenizer.from_pretrained(byte_folder)
    chat = load_chat_template(byte_folder, config)
    assert chat.render(_WITH_ANSWER) == theirs.apply_chat_template([_turn("user", "u")], tokenize=False)


def test_the_template_for_tools_gets_the_tokens_that_it_alone_says(tmp_path):
    named = {"default": "{{ messages[0].content }}", "tool_use": "{{ image_token }}{{ messages[0].content }}"}
    templates = [{"name": name, "template": source} for name, source in named.items()]
    chat = load_chat_template(tmp_path, {"chat_template": templates, "image_token": "<i>"})
    assert chat.render(Chat((_turn("user", "u"),), tools=({"name": "f"},))) == "<i>u"


def test_tokens_that_the_template_does_not_say_leave_the_digest_as_it_was(tmp_path):
    config = {"chat_template": "{{ bos_token }}", "eos_token": "c"}
    before = load_chat_template(tmp_path, config).digest
    named = config | {"image_token": "<i>", "extra_special_tokens": {"messages": "<m>"}}
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "d", "pad_token": "p"}', encoding="utf-8")
    assert load_chat_template(tmp_path, named).digest == before
    (tmp_path / "special_tokens_map.json").write_text('{"bos_token": "<s>"}', encoding="utf-8")
    assert load_chat_template(tmp_path, named).digest != before


@pytest.mark.parametrize(("content", "message"), [("{", "cannot be read as JSON"), ("[]", "holds a list")])
def test_a_malformed_map_of_tokens_is_named(tmp_path, content, message):
    (tmp_path / "special_tokens_map.json").write_text(content, encoding="utf-8")
    with pytest.raises(PromptError, match=rf"special_tokens_map\.json: {message}"):
        load_chat_template(tmp_path, {})


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([{"name": "tool_use", "template": "x"}], "none of the templates in the list is named 'default'"),
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
