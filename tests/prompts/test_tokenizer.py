import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, models

from layertap.errors import PromptError
from layertap.prompts import PromptMaker, load_template, load_tokenizer, parse_grid_encoder
from layertap.prompts.chat import Chat

_ODD_TEXTS = [
    "Hello world",
    "e\u0301 vs \u00e9, \u212b vs \u00c5, \uac00 vs \u1100\u1161",
    "\u200d\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea",
    "tabs\t\tand   spaces \n\n\r\n \r and\u00a0\u3000 more",
    "\x00\x01\x7f\u0085\u2028",
    "\ufffe\uffff\U0010ffff\ue000",
    "I'm you'll WE'VE 12345 ٣٤٥ ⅷ ²",
    "中文，日本語、한국어 ไทย עברית العربية",
    "<|im_start|>system\n<|im_end|><|endoftext|><tool_call></tool_call><|fim_pad|><|im_start",
    " <|im_end|> ",
    "```grid shape: 3x3\n1 000\n2 ɐɑɒ\n```",
    "a" * 3000,
]


@pytest.fixture(scope="module")
def qwen(qwen_folder):
    return load_tokenizer(qwen_folder)


@pytest.fixture(scope="module")
def reference(qwen_folder):
    transformers = pytest.importorskip("transformers", reason="transformers is what our ids are compared with")
    return transformers.AutoTokenizer.from_pretrained(qwen_folder)


def _write_config(folder, **config):
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def _reference_ids(reference, texts):
    return reference(texts, add_special_tokens=False)["input_ids"]


def _prompts(qwen, tasks, expression, include_answer):
    maker = PromptMaker(qwen, load_template(), parse_grid_encoder(expression), 1, include_answer, 42)
    return [maker.tokenizer.decode(sample.token_ids) for sample in maker.make([(0, task) for task in tasks])]


@pytest.mark.parametrize(
    ("expression", "include_answer"),
    [
        ("GridShapeEncoder(RowNumberEncoder(MinimalGridEncoder()))", True),
        ("RowNumberEncoder(ReplaceNumberEncoder(GridWithSeparationEncoder(' ')))", False),
    ],
)
def test_ids_of_arc_prompts_are_those_of_transformers(qwen, reference, arc_tasks, expression, include_answer):
    texts = _prompts(qwen, arc_tasks[::4], expression, include_answer)
    assert [ids.tolist() for ids in qwen.encode_batch(texts)] == _reference_ids(reference, texts)


def test_ids_of_odd_texts_are_those_of_transformers(qwen, reference):
    assert [ids.tolist() for ids in qwen.encode_batch(_ODD_TEXTS)] == _reference_ids(reference, _ODD_TEXTS)


@given(text=st.text(max_size=60))
def test_ids_of_any_text_are_those_of_transformers(qwen, reference, text):
    assert qwen.encode_batch([text])[0].tolist() == _reference_ids(reference, [text])[0]


@pytest.mark.parametrize("opening", [None, "### Output\n"])
def test_chat_text_is_that_of_transformers(qwen, reference, opening):
    turns = [("system", "Be brief."), ("user", " two\nlines "), ("assistant", "one"), ("user", "and?")]
    messages = [{"role": role, "content": content} for role, content in turns]
    expected = reference.apply_chat_template(messages, tokenize=False, add_generation_prompt=opening is not None)
    conversation = Chat(tuple(messages), opening)
    assert qwen.chat.render(conversation) == expected + (opening or "")


def test_facts_of_the_qwen_vocabulary(qwen):
    assert qwen.vocab_size == 151_665
    assert {151_643, 151_644, 151_645} <= qwen.special_ids
    assert not qwen.special_ids & set(range(151_643))


@given(texts=st.lists(st.text(max_size=20), max_size=300))
def test_a_text_has_the_same_ids_in_every_batch(qwen, texts):
    together = qwen.encode_batch(texts)
    assert [ids.tolist() for ids in together] == [qwen.encode_batch([text])[0].tolist() for text in texts]


def test_ids_are_flat_int32_arrays_whose_text_has_its_special_tokens(byte_folder):
    tokenizer = load_tokenizer(byte_folder)
    text = "<|im_start|>user\né<|im_end|>\n"
    (ids,) = tokenizer.encode_batch([text])
    assert (ids.dtype, ids.ndim) == (np.int32, 1)
    assert tokenizer.decode(ids) == text


def test_special_ids_leave_out_added_tokens_that_are_text(byte_folder, byte_tokenizer):
    byte_tokenizer.add_tokens([AddedToken("<tool_call>", special=False)])
    byte_tokenizer.save(str(byte_folder / "tokenizer.json"))
    assert load_tokenizer(byte_folder).special_ids == {256, 257, 258}


def test_truncation_and_padding_are_switched_off(byte_folder, byte_tokenizer):
    byte_tokenizer.enable_truncation(2)
    byte_tokenizer.enable_padding(length=8)
    byte_tokenizer.save(str(byte_folder / "tokenizer.json"))
    assert [ids.size for ids in load_tokenizer(byte_folder).encode_batch(["abc", "a"])] == [3, 1]


def test_dropout_is_refused(byte_folder, byte_tokenizer):
    byte_tokenizer.model = models.BPE(vocab={"a": 0}, merges=[], dropout=0.1)
    byte_tokenizer.save(str(byte_folder / "tokenizer.json"))
    with pytest.raises(PromptError, match=r"tokenizer\.json: BPE dropout is set"):
        load_tokenizer(byte_folder)


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff", b'{"model": '])
def test_a_missing_or_malformed_tokenizer_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content)
    complaint = "no such file" if content is None else "is not a tokenizer"
    with pytest.raises(PromptError, match=rf"tokenizer\.json: {complaint}"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "cannot be read as JSON"),
        (b"\xff", "cannot be read as JSON"),
        (b"[]", "holds a list"),
        (b'{"added_tokens_decoder": []}', "added_tokens_decoder is not an object"),
    ],
)
def test_a_malformed_config_is_named(byte_folder, content, message):
    (byte_folder / "tokenizer_config.json").write_bytes(content)
    with pytest.raises(PromptError, match=f"tokenizer_config.json: {message}"):
        load_tokenizer(byte_folder)


def test_added_tokens_that_only_the_config_knows_are_refused(byte_folder):
    _write_config(byte_folder, added_tokens_decoder={"256": {"content": "<|endoftext|>"}, "300": {"content": "<new>"}})
    with pytest.raises(PromptError, match=r"names 1 added tokens .* such as '<new>'"):
        load_tokenizer(byte_folder)


def test_digest_follows_ids_and_chat_text(byte_folder, byte_tokenizer):
    digests = [load_tokenizer(byte_folder).digest]
    _write_config(byte_folder, chat_template="{{ messages[0].content }}!")
    digests.append(load_tokenizer(byte_folder).digest)
    assert load_tokenizer(byte_folder).chat.render(Chat(({"role": "user", "content": "u"},))) == "u!"
    byte_tokenizer.add_tokens([AddedToken("<tool_call>")])
    byte_tokenizer.save(str(byte_folder / "tokenizer.json"))
    digests.append(load_tokenizer(byte_folder).digest)
    assert len(set(digests)) == 3
    assert load_tokenizer(byte_folder).digest == digests[-1]


@given(text=st.text(max_size=60) | st.text("ab 01\n<|im_end|>", max_size=60))
def test_the_characters_of_tokens_are_those_that_the_library_says(qwen, reference, text):
    """Offsets are found from the tokens' bytes where possible. The tokens are the same as without
    offsets.
    """
    ((ids, offsets),) = qwen.encode_marked([text])
    assert ids.tolist() == qwen.encode_batch([text])[0].tolist()
    expected = reference(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    assert list(map(tuple, offsets.tolist())) == [tuple(pair) for pair in expected]
