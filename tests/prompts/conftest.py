import json
import os
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from layertap.core.records import Pair, Task

_SHARED = Path(os.environ.get("LAYERTAP_SHARED_DATA", Path(__file__).parents[2] / ".." / "shared" / "data")).resolve()
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def _grid(rows):
    return tuple(tuple(row) for row in rows)


def _pairs(raw):
    return tuple(Pair(_grid(pair["input"]), _grid(pair["output"])) for pair in raw)


@pytest.fixture(scope="session")
def qwen_folder():
    folder = _SHARED / "qwen2.5-tokenizer"
    if not folder.is_dir():
        pytest.skip(f"the Qwen 2.5 tokenizer is not at {folder}; set LAYERTAP_SHARED_DATA")
    return folder


@pytest.fixture(scope="session")
def arc_tasks():
    path = _SHARED / "arc-agi-1" / "training.jsonl"
    if not path.is_file():
        pytest.skip(f"the ARC-AGI-1 tasks are not at {path}; set LAYERTAP_SHARED_DATA")
    raw = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [Task(task["task_id"], _pairs(task["train"]), _pairs(task["test"])) for task in raw]


@pytest.fixture
def byte_tokenizer():
    """One token a byte, and the three tokens of ChatML."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: id_ for id_, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in _SPECIAL])
    return tokenizer


@pytest.fixture
def byte_folder(tmp_path, byte_tokenizer):
    """A checkpoint folder with `tokenizer.json` alone."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    byte_tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def two_tests():
    """A task with two train pairs and two test inputs, the second without its answer."""
    return Task(
        "two-tests",
        train=(Pair(((0, 1), (2, 3)), ((3, 2), (1, 0))), Pair(((4, 5, 6),), ((6, 5, 4),))),
        test=(Pair(((7,), (8,)), ((8,), (7,))), Pair(((9, 9),), None)),
    )
