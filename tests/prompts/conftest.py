import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from layertap.core.records import Pair, Task
from layertap.dataset import read_records

_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@pytest.fixture(scope="session")
def qwen_folder(shared_data):
    return shared_data / "qwen2.5-tokenizer"


@pytest.fixture(scope="session")
def arc_tasks(shared_data):
    return list(read_records(str(shared_data / "arc-agi-1" / "training.jsonl")))


@pytest.fixture
def byte_tokenizer():
    """A tokenizer with a token for each byte, and the three tokens of ChatML."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: id_ for id_, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in _SPECIAL])
    return tokenizer


@pytest.fixture
def byte_folder(tmp_path, byte_tokenizer):
    """A checkpoint folder that contains only `tokenizer.json`."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    byte_tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def two_tests():
    """A task with two train pairs and two test inputs. The second test input has no answer."""
    return Task(
        "two-tests",
        train=(Pair(((0, 1), (2, 3)), ((3, 2), (1, 0))), Pair(((4, 5, 6),), ((6, 5, 4),))),
        test=(Pair(((7,), (8,)), ((8,), (7,))), Pair(((9, 9),), None)),
    )
