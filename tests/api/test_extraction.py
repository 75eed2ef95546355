"""`layertap.extract`: the command as a function."""

from pathlib import Path

import pytest
from runs import finished, out, small_run

import layertap
from layertap.errors import InputError, UsageError


def test_it_writes_what_the_command_writes(few_tasks: Path, tiny_model: Path, tmp_path: Path) -> None:
    config = small_run(few_tasks, tiny_model, tmp_path)
    settings = {
        name: getattr(config, name)
        for name in ("predictions_per_task", "prompt_version", "row_length", "batch_size", "max_seq_length")
    }
    mine = tmp_path / "mine"
    dataset = layertap.extract(
        dataset_path=few_tasks,
        model_path=tiny_model,
        layers_to_extract=[1, 3],
        window_samples=10,
        shard_size_gb=0.001,
        output_dir=mine,
        checkpoint_dir=tmp_path / "mine_checkpoints",
        **settings,
    )
    finished(config)
    ours, theirs = ({path.name: path.read_bytes() for path in folder.glob("shard_*")} for folder in (mine, out(config)))
    assert ours == theirs
    assert dataset.complete
    assert len(dataset) == len(layertap.ActivationDataset(out(config)))
    assert len(repr(dataset).splitlines()) == 3


def test_nothing_extracted_is_an_error(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"train": [], "test": []}\n')
    with pytest.raises(InputError, match="nothing was extracted"):
        layertap.extract(
            dataset_path=tmp_path / "bad.jsonl",
            dataset_format="jsonl",
            model_path=tiny_model,
            layers_to_extract=1,
            on_bad_task="skip",
            output_dir=tmp_path / "out",
            checkpointing=False,
        )


def test_what_only_the_command_does_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="sharded_dataset_dir: works only with the command"):
        layertap.extract(sharded_dataset_dir=tmp_path, layers_to_extract=1)
