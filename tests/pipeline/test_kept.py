"""`--keep_tokens`: a run computes everything, and stores a part of what a full run stores."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shards
from runs import changed, extract_some, finished, manifest, out

import layertap
from layertap.check.verify import verify
from layertap.cli import main
from layertap.config.extract import ExtractConfig
from layertap.core.columns import COLUMNS, ROLES
from layertap.errors import RunMismatchError, UsageError
from layertap.model.checkpoint import open_checkpoint
from layertap.pipeline.inputs import prompt_maker
from layertap.pipeline.prefix import find_prefixes
from layertap.pipeline.run import extract

ASSISTANT, USER = ROLES.index("assistant"), ROLES.index("user")
CHOICES: dict[str, Any] = {
    "cells": lambda entry: entry["cells"] > 0,
    "answer": lambda entry: entry["role"] == ASSISTANT,
    "role:user": lambda entry: entry["role"] == USER,
    "answer cells": lambda entry: (entry["cells"] > 0) | (entry["role"] == ASSISTANT),
}


@pytest.fixture
def answered(config: ExtractConfig) -> ExtractConfig:
    return changed(config, include_answer=True)


@pytest.fixture
def whole(answered: ExtractConfig) -> dict[int, Any]:
    """What the run stores if it keeps all tokens."""
    finished(answered)
    return shards.samples(out(answered), layer=1)


@pytest.fixture
def part(answered: ExtractConfig, tmp_path: Path) -> ExtractConfig:
    """The same run with other folders."""
    return changed(answered, **{name: str(tmp_path / "part" / name) for name in ("output_dir", "checkpoint_dir")})


@pytest.mark.parametrize("names", CHOICES)
def test_what_is_kept_is_what_a_whole_run_stores_of_it(whole: dict[int, Any], part: ExtractConfig, names: str) -> None:
    extract(changed(part, keep_tokens=tuple(names.split())))
    found = shards.samples(out(part), layer=1)
    assert list(found) == list(whole)
    for index, entry in found.items():
        rows = CHOICES[names](whole[index])
        assert 0 < rows.sum() < len(rows)
        for name in (*COLUMNS, "activation", "norms"):
            assert np.array_equal(entry[name], whole[index][name][rows]), name
    report = verify(out(part))
    assert report.sound, report.findings


@pytest.mark.whole
@pytest.mark.parametrize("format_", ["pickle", "safetensors"])
def test_no_prefix_leaves_out_what_all_prompts_begin_with_and_no_more(
    whole: dict[int, Any], part: ExtractConfig, format_: str
) -> None:
    extract(changed(part, keep_tokens=("no_prefix",), format=format_))
    shortest = min(len(entry["token_ids"]) for entry in whole.values())
    rows = np.array([entry["token_ids"][:shortest] for entry in whole.values()])
    common = int(np.argmin((rows == rows[0]).all(axis=0)))  # of these few, maybe a little more than of all
    dataset = layertap.ActivationDataset(out(part))
    begin = int(dataset[0].positions[0])
    assert 100 < common - 3 <= begin <= common
    for sample in dataset:
        assert np.array_equal(sample.positions, np.arange(begin, len(whole[sample.sample_idx]["token_ids"])))
    assert verify(out(part)).sound


def test_the_prefix_follows_from_template_and_tokenizer_alone(answered: ExtractConfig, tiny_model: Path) -> None:
    def prefixes(**changes: Any) -> dict[str, list[list[int]]]:
        maker = dataclasses.replace(prompt_maker(answered, open_checkpoint(str(tiny_model))), **changes)
        found = find_prefixes(maker, share=True).by_kind
        return {kind: [ids.tolist() for ids in prefixes] for kind, prefixes in found.items()}

    found = prefixes()
    assert found == prefixes(seed=7, predictions_per_task=5)
    maker = prompt_maker(answered, open_checkpoint(str(tiny_model)))
    (puzzle,) = found["puzzle"]
    assert maker.tokenizer.decode(puzzle).startswith("<|im_start|>system")
    bare, common = found["conversation"]
    assert maker.tokenizer.decode(common) in ("<|im_start|>", "<|im_start|>system\n")
    assert maker.tokenizer.decode(bare).endswith("<|im_start|>user\n")
    assert found["text"] == [[]]


def test_texts_are_kept_whole_by_no_prefix(part: ExtractConfig, tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": f"Document number {number}"}) + "\n" for number in range(4)))
    extract(changed(part, dataset_path=str(path), keep_tokens=("no_prefix",)))
    for entry in shards.samples(out(part), layer=1).values():
        assert entry["positions"][0] == 0


@pytest.fixture
def mixed(part: ExtractConfig, tmp_path: Path) -> ExtractConfig:
    """Puzzles between texts, which have no cells."""
    lines = []
    for number, line in enumerate(Path(str(part.dataset_path)).read_text().splitlines()):
        lines += [json.dumps({"messages": [{"role": "user", "content": f"Conversation {number}"}]}), line]
    path = tmp_path / "mixed.jsonl"
    path.write_text("\n".join(lines))
    return changed(part, dataset_path=str(path), keep_tokens=("cells",))


def test_a_sample_with_nothing_to_keep_is_left_out_and_counted(mixed: ExtractConfig) -> None:
    summary = extract(mixed)
    found = shards.samples(out(mixed), layer=1)
    unkept = manifest(mixed)["progress"]["unkept_samples"]
    assert unkept["count"] == 5
    indices = {index for first, last in unkept["sample_idx"] for index in range(first, last + 1)}
    assert sorted({*found, *indices}) == list(range(summary.samples))
    assert not indices & found.keys()
    assert "left out 5 samples without a token that --keep_tokens keeps; metadata.json lists them" in summary.describe()
    assert verify(out(mixed)).sound


def test_a_lost_sample_is_still_found(mixed: ExtractConfig) -> None:
    extract(mixed)
    path = out(mixed) / "metadata.json"
    document = json.loads(path.read_text())
    del document["progress"]["unkept_samples"]
    path.write_text(json.dumps(document))
    assert any("are in no shard" in finding for finding in verify(out(mixed)).findings)


@pytest.mark.whole
@pytest.mark.parametrize("changes", [{}, {"max_tokens_total": 3000}])
def test_an_interruption_makes_no_difference(mixed: ExtractConfig, changes: dict[str, Any], tmp_path: Path) -> None:
    config = changed(mixed, shard_size_gb=0.0003, **changes)
    finished(config)
    whole, count = shards.contents(out(config)), len(manifest(config)["shards"])
    assert count > 2
    for kept in range(count):
        for path in sorted(out(config).parent.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        extract_some(config, kept)
        extract(config)
        assert shards.contents(out(config)) == whole


def test_a_run_that_keeps_nothing_is_no_success(part: ExtractConfig, capsys: Any, tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text(json.dumps({"text": "no cell"}) + "\n")
    flags = {"dataset_path": path, "model_path": part.model_path, "output_dir": part.output_dir}
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    assert main(["extract", *words, "--checkpoint_dir", part.checkpoint_dir, "--keep_tokens", "cells"]) == 2
    assert (
        "nothing was extracted: the run skipped 1 sample without a token that --keep_tokens" in capsys.readouterr().err
    )
    assert "EMPTY" in verify(out(part)).describe()


def test_it_is_part_of_the_run(part: ExtractConfig) -> None:
    finished(part)
    assert "keep_tokens" not in manifest(part)["identity"]["storage"]
    with pytest.raises(RunMismatchError, match=r"keep_tokens: None there, \['cells'\] now"):
        extract(changed(part, keep_tokens=("cells",)))


@pytest.mark.parametrize("names", [("cell",), (), ("role:nobody",), ("cells", "all the rest")])
def test_an_unknown_choice_is_refused_with_those_there_are(config: ExtractConfig, names: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="give one or several of all, cells, answer, no_prefix, role:template"):
        changed(config, keep_tokens=names)


def test_one_sample_in_two_folders_is_refused_where_they_share_a_token(answered: ExtractConfig, tmp_path: Path) -> None:
    few = changed(answered, max_tasks=1)
    for name, kept in {"cells": "cells", "answer": "answer", "system": "role:system"}.items():
        extract(
            changed(
                few, keep_tokens=(kept,), output_dir=str(tmp_path / name), checkpoint_dir=str(tmp_path / "ck" / name)
            )
        )
    (tmp_path / "apart").mkdir()
    for name in ("cells", "system"):
        (tmp_path / "apart" / name).symlink_to(tmp_path / name)
    with pytest.raises(UsageError, match="hold the same samples"):
        layertap.ActivationDataset(tmp_path)


def test_batches_and_inspect_tell_the_positions(part: ExtractConfig, capsys: Any) -> None:
    extract(changed(part, keep_tokens=("cells",), format="safetensors"))
    dataset = layertap.ActivationDataset(out(part))
    for batch in dataset.batches(512, layers=[1], columns=("token_ids", "cells")):
        assert (batch.columns["cells"] > 0).all()
        for row in range(0, len(batch), 100):
            sample = dataset[int(batch.samples[row])]
            assert batch.token_ids[row] == sample.token_ids[sample.positions == batch.positions[row]]
    assert main(["inspect", str(out(part)), "--sample", "0", "--max_tokens", "0"]) == 0
    text = capsys.readouterr().out
    assert "only these tokens were kept, at their positions in the prompt: cells" in text
    first = next(sample for sample in dataset if sample.sample_idx == 0)
    assert all(f"\n{position} " in text.replace("\n ", "\n").replace("\n ", "\n") for position in first.positions[:3])
