"""Exported folders, read by the libraries that they are made for."""

import re
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from sae_lens.training.activations_store import ActivationsStore

import layertap
from layertap.cli import main

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "export.md").read_text()
CONTEXT = 32
HOOK = "blocks.2.hook_resid_post"


def store(folder: Path, dtype: str) -> ActivationsStore:
    """SAELens' own reader of cached activations."""
    return ActivationsStore(
        model=None,
        dataset=None,
        cached_activations_path=str(folder),
        hook_name=HOOK,
        hook_head_index=None,
        d_in=64,
        context_size=CONTEXT,
        store_batch_size_prompts=2,
        n_batches_in_buffer=8,
        train_batch_size_tokens=64,
        total_training_tokens=6400,
        dtype=dtype,
        device=torch.device("cpu"),
        normalize_activations="none",
        prepend_bos=False,
        streaming=False,
    )


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_saelens_reads_what_we_read(run: Path, tmp_path: Path, dtype: str) -> None:
    flags = ["--to", "saelens", "--dtype", dtype, "--context_size", str(CONTEXT)]
    assert main(["export", str(run), str(tmp_path / "out"), *flags]) == 0
    found, ids = store(tmp_path / "out", dtype).get_raw_llm_batch()
    batches = layertap.ActivationDataset(run).batches(2 * CONTEXT, shuffle=False, as_="torch", dtype="float32")
    batch = next(iter(batches))
    assert torch.equal(found, batch.activations[:, 0].to(getattr(torch, dtype)))
    if dtype == "float32":
        assert ids.tolist() == batch.token_ids.tolist()


def test_token_ids_of_a_saelens_folder_are_integers(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), str(tmp_path / "out"), "--to", "saelens", "--context_size", str(CONTEXT)]) == 0
    rows = datasets.load_from_disk(str(tmp_path / "out")).with_format("torch")
    assert rows[0]["token_ids"].dtype == torch.int64
    assert rows.features["token_ids"].feature.dtype == "int32"
    assert rows[0][HOOK].shape == (CONTEXT, 64)


def test_the_folder_of_the_page_is_opened_as_the_page_says(place: Path) -> None:
    (command,) = re.findall(r"^    layertap (export activations rows .*)$", PAGE, re.MULTILINE)
    assert main(command.split()) == 0
    (program,) = re.findall(
        r"^import datasets\n\n(rows = datasets.load_from_disk\(.*?)```", PAGE, re.DOTALL | re.MULTILINE
    )
    lines = program.splitlines()
    names = {"datasets": datasets}
    exec(lines[0], names)
    task_id, token_ids, roles = eval(lines[1], names)
    assert isinstance(task_id, str)
    assert all(isinstance(token, int) for token in token_ids)
    assert len(roles) == len(token_ids)
    assert eval(lines[2], names).shape == (len(token_ids), 64)
    assert all(cells > 0 for cells in names["rows"][0]["cells"]), "--include cells"


def test_datasets_opens_samples(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), str(tmp_path / "out"), "--to", "hf"]) == 0
    rows = datasets.load_from_disk(str(tmp_path / "out"))
    samples = layertap.ActivationDataset(run)
    assert len(rows) == len(samples)
    shuffled = rows.shuffle(seed=0).select(range(5)).with_format("torch")
    for row in shuffled:
        sample = samples[int(row["sample"])]
        values = torch.from_numpy(np.array(sample.activation(2), np.float32))
        assert torch.equal(row["residual.2"], values)
        assert row["token_ids"].dtype == torch.int64
        assert row["token_ids"].tolist() == sample.token_ids.tolist()
        assert row["role"].tolist() == sample.column("role").tolist()
    assert rows.filter(lambda row: row["task_id"] == rows[0]["task_id"])[0]["sample"] == 0
