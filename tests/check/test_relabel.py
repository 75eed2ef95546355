"""`verify` finds wrong labels by making some prompts again."""

from pathlib import Path

import numpy as np
import pytest
from runs import changed, finished, out, small_run

from layertap.check.relabel import Relabelling, open_relabelling
from layertap.check.verify import verify
from layertap.core.columns import NO_LABELS
from layertap.objects import open_store
from layertap.reader import ActivationDataset
from layertap.shards.manifest_files import load_manifest


@pytest.fixture
def folder(tiny_model: Path, few_tasks: Path, tmp_path: Path) -> Path:
    config = small_run(few_tasks, tiny_model, tmp_path, include_answer=True)
    finished(config)
    return out(config)


def columns_of(folder: Path, number: int = 0) -> dict[str, np.ndarray]:
    sample = ActivationDataset(str(folder))[number]
    return {name: sample.column(name).copy() for name in ("token_ids", "positions", *NO_LABELS)}


def opened(folder: Path) -> Relabelling:
    manifest = load_manifest(open_store(str(folder)))
    assert manifest is not None
    return open_relabelling(manifest)


def test_two_samples_of_each_shard_are_made_again(folder: Path) -> None:
    report = verify(folder)
    assert report.sound, report.findings
    assert len(report.manifest.shards) <= report.relabelled <= 2 * len(report.manifest.shards)
    assert f"the labels of {report.relabelled} samples made again" in report.describe()


@pytest.mark.parametrize("name", list(NO_LABELS))
def test_a_wrong_label_is_found_wherever_it_is(folder: Path, name: str) -> None:
    labels, columns = opened(folder), columns_of(folder)
    assert labels.finding(columns) is None
    cells = np.flatnonzero(columns["cells"])
    for token in (cells[0], cells[len(cells) // 2], cells[-1]):
        wrong = columns | {name: columns[name].copy()}
        wrong[name][token] += 1
        assert labels.finding(wrong) is not None


def test_a_token_of_another_prompt_is_found(folder: Path) -> None:
    labels, columns = opened(folder), columns_of(folder)
    columns["token_ids"][1] += 1
    assert "token_ids of token 1 is" in (labels.finding(columns) or "")


def test_without_the_runs_own_tokenizer_nothing_is_compared(folder: Path, tiny_model: Path, few_tasks: Path) -> None:
    manifest = load_manifest(open_store(str(folder)))
    assert manifest is not None
    assert opened(folder).finding(columns_of(folder)) is None
    gone = changed(manifest, model_path="/nowhere")
    other = changed(
        manifest, identity={**manifest.identity, "prompts": {**manifest.identity["prompts"], "tokenizer": ""}}
    )
    for lacking in (gone, other):
        labels = open_relabelling(lacking)
        columns = columns_of(folder)
        columns["token_ids"][1] += 1
        assert labels.finding(columns) is None
        assert labels.compared == 0
