"""Conversations, token lists and long texts through a whole run: stopped, resumed, verified."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import shards
from runs import extract_some, out, small_run

from layertap.check.verify import verify
from layertap.config.extract import ExtractConfig
from layertap.core.columns import ROLES
from layertap.pipeline.run import extract
from layertap.prompts import MOST_PARTS
from layertap.reader import ActivationDataset

_CHAT = [{"role": "user", "content": "How many rows?"}, {"role": "assistant", "content": "Three rows of three."}]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Records of every kind except tasks. The documents have 1 to about 700 tokens."""
    rows = [{"id": f"doc {number}", "text": "a row of cells and " * (number * number + 1)} for number in range(12)]
    rows[3:3] = [{"id": f"chat {number}", "messages": _CHAT * (number + 1)} for number in range(6)]
    rows[9:9] = [{"id": f"ids {number}", "input_ids": list(range(5, 25 + 40 * number))} for number in range(6)]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def config(texts: Path, tiny_model: Path, tmp_path: Path) -> ExtractConfig:
    return small_run(
        texts, tiny_model, tmp_path, overlong="split", max_seq_length=64, split_overlap=8, shard_size_gb=0.0004
    )


@pytest.mark.whole
def test_contexts_are_stored_and_resumed_with_the_same_bytes(config: ExtractConfig, tmp_path: Path) -> None:
    extract(config)
    whole = shards.contents(out(config))
    report = verify(out(config))
    assert report.sound, report.findings
    assert len(report.manifest.shards) >= 4
    for count in (1, 3):
        here = small_run(
            Path(str(config.dataset_path)), Path(config.model_path), tmp_path / str(count),
            overlong="split", max_seq_length=64, split_overlap=8, shard_size_gb=0.0004,
        )  # fmt: skip
        extract_some(here, count)
        extract(here)
        found = shards.contents(out(here))
        assert found.keys() == whole.keys()
        assert all(found[name] == whole[name] for name in whole if name != "metadata.json")


def test_each_context_knows_its_document_and_its_place(config: ExtractConfig) -> None:
    extract(config)
    dataset = ActivationDataset(config.output_dir)
    by_task: dict[str, list] = {}
    for sample in dataset:
        by_task.setdefault(sample.task_id, []).append(sample)
    assert len(by_task) == 24
    longest = sorted(by_task["doc 11"], key=lambda sample: sample.sample_idx)
    assert [sample.origin["part"] for sample in longest] == list(range(len(longest)))
    assert longest[0].sample_idx % MOST_PARTS == 0
    assert [sample.origin["start"] for sample in longest] == [56 * part for part in range(len(longest))]
    for before, after in pairwise(longest):
        assert np.array_equal(before.token_ids[-8:], after.token_ids[:8])


def test_a_conversation_has_its_roles_and_a_document_none(config: ExtractConfig) -> None:
    extract(config)
    for sample in ActivationDataset(config.output_dir):
        roles = {ROLES[role] for role in np.unique(sample.column("role"))}
        assert roles <= ({"template", "user", "assistant"} if sample.task_id.startswith("chat") else {"text"})
