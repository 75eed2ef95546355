import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from layertap.demo.corpus import demo_texts
from layertap.demo.tokenizer import write_tokenizer
from layertap.errors import PromptError

CONVERSATION = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "### Input\n012\n345\n"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, demo_texts())
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def transformers_tokenizer(folder):
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(folder)


def test_the_size_returned_is_the_number_of_ids(tmp_path):
    size = write_tokenizer(tmp_path, demo_texts(), vocab_size=600)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert size == 600
    assert sorted(tokenizer.get_vocab().values()) == list(range(600))


def test_poor_texts_make_a_smaller_vocabulary(tmp_path):
    assert write_tokenizer(tmp_path, ["aa"], vocab_size=600) == 256 + 1 + 22


def test_a_vocabulary_too_small_for_bytes_and_added_tokens_is_refused(tmp_path):
    with pytest.raises(PromptError, match=r"vocab_size 277 is too small.* 278"):
        write_tokenizer(tmp_path, demo_texts(), vocab_size=277)


def test_added_tokens_follow_the_base_vocabulary_in_the_order_of_qwen(tokenizer):
    base = tokenizer.get_vocab_size(with_added_tokens=False)
    assert [tokenizer.id_to_token(base + place) for place in (0, 1, 2, 21)] == [
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<|file_sep|>",
    ]


def test_control_tokens_are_special_and_the_others_are_not(folder):
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    assert [token["special"] for token in added] == [True] * 14 + [False] * 8


def test_every_digit_is_a_token_and_every_line_break_in_a_grid_too(tokenizer):
    assert tokenizer.encode("012\n345").tokens == ["0", "1", "2", "Ċ", "3", "4", "5"]


def test_a_common_word_is_one_token_with_its_leading_space(tokenizer):
    assert tokenizer.encode(" grid").tokens == ["Ġgrid"]


def test_text_is_normalised_to_composed_characters(tokenizer):
    assert tokenizer.encode("e\u0301").ids == tokenizer.encode("\u00e9").ids


def test_special_tokens_in_a_text_are_found(tokenizer):
    assert tokenizer.encode("a<|im_end|>b").tokens == ["a", "<|im_end|>", "b"]


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_decoding_gives_the_normalised_text_back(tokenizer, text):
    assert tokenizer.decode(
        tokenizer.encode(text).ids, skip_special_tokens=False
    ) == tokenizer.normalizer.normalize_str(text)


@given(text=st.text(st.characters(exclude_categories=["Cs"])) | st.text("01289 \n#`abc<|im_end|>"))
def test_transformers_gives_the_same_ids(tokenizer, transformers_tokenizer, text):
    assert transformers_tokenizer(text).input_ids == tokenizer.encode(text).ids


def test_transformers_knows_the_end_and_padding_tokens(transformers_tokenizer):
    assert (transformers_tokenizer.eos_token, transformers_tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")


def test_the_chat_template_is_chatml(transformers_tokenizer):
    text = transformers_tokenizer.apply_chat_template(CONVERSATION, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n### Input\n012\n345\n<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_the_chat_template_adds_no_system_message_and_no_turn_unasked(transformers_tokenizer):
    text = transformers_tokenizer.apply_chat_template(CONVERSATION[1:], tokenize=False)
    assert text == "<|im_start|>user\n### Input\n012\n345\n<|im_end|>\n"


def test_another_process_trains_the_same_bytes(folder, tmp_path):
    script = (
        "import sys, pathlib, layertap.demo.tokenizer as t, layertap.demo.corpus as c;"
        "t.write_tokenizer(pathlib.Path(sys.argv[1]), c.demo_texts())"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path], check=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
