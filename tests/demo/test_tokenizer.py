import json

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from layertap.demo.tokenizer import demo_texts, write_tokenizer
from layertap.errors import PromptError

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"])) | st.text("01289 \n#`abc<|im_end|>")


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
    return transformers.AutoTokenizer.from_pretrained(folder)


def test_the_size_returned_is_the_number_of_ids(tmp_path):
    size = write_tokenizer(tmp_path, demo_texts(), vocab_size=600)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert size == 600
    assert sorted(tokenizer.get_vocab().values()) == list(range(600))


def test_a_vocabulary_too_small_for_bytes_and_added_tokens_is_refused(tmp_path):
    with pytest.raises(PromptError, match=r"vocab_size 277 is too small.* 278"):
        write_tokenizer(tmp_path, demo_texts(), vocab_size=277)


def test_added_tokens_follow_the_base_vocabulary_in_the_order_of_qwen(folder, tokenizer):
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    base = tokenizer.get_vocab_size(with_added_tokens=False)
    assert [tokenizer.id_to_token(base + place) for place in (0, 1, 2, 13, 14, 21)] == [
        "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|video_pad|>", "<tool_call>", "<|file_sep|>",
    ]  # fmt: skip
    assert [token["special"] for token in added] == [True] * 14 + [False] * 8


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("012\n345", ["0", "1", "2", "Ċ", "3", "4", "5"]),
        (" grid", ["Ġgrid"]),
        ("a<|im_end|>b", ["a", "<|im_end|>", "b"]),
        ("e\u0301", ["Ã", "©"]),  # composed, as in Qwen 2.5
    ],
)
def test_text_is_cut_as_in_qwen(tokenizer, text, tokens):
    assert tokenizer.encode(text).tokens == tokens


@given(text=ANY_TEXT)
def test_transformers_gives_the_same_ids(tokenizer, transformers_tokenizer, text):
    assert transformers_tokenizer(text).input_ids == tokenizer.encode(text).ids


def test_the_chat_template_is_chatml_and_adds_nothing_unasked(transformers_tokenizer):
    user = {"role": "user", "content": "012\n345\n"}
    turns = [{"role": "system", "content": "Be brief."}, user]
    alone = transformers_tokenizer.apply_chat_template([user], tokenize=False)
    opened = transformers_tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert alone == "<|im_start|>user\n012\n345\n<|im_end|>\n"
    assert opened == f"<|im_start|>system\nBe brief.<|im_end|>\n{alone}<|im_start|>assistant\n"
