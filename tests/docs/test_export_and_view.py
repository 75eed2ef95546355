"""docs/export.md and docs/view.md, from top to bottom: each command and each block of Python runs,
with one small run and an autoencoder.

Blocks that a page marks with `make contract runs this` need trainers that are not installed here;
they run in tests/contract/test_recipes.py.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from autoencoders import write_autoencoder
from commands import ROOT
from pages import Block, blocks, printed_commands
from runs import small_run

from layertap.cli import main
from layertap.pipeline.run import extract

_BY_CONTRACT = "<!-- make contract runs this"
_FEATURES = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, few_tasks: Path, tiny_model: Path) -> Path:
    folder = tmp_path_factory.mktemp("page")
    changes = {"max_tasks": 1, "layers_to_extract": (2,), "format": "safetensors"}
    extract(small_run(few_tasks, tiny_model, folder, output_dir=str(folder / "activations"), **changes))
    write_autoencoder(folder / "sae", features=_FEATURES, hook="blocks.2.hook_resid_post")
    torch.save({"encoder.weight": torch.ones(3, 2).T}, folder / "ae.pt")
    return folder


def follow(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Do what the page shows, in `folder`; return the names that its Python leaves."""
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    for block in blocks(ROOT / "docs" / page):
        if block.language == "python":
            if not block.above.startswith(_BY_CONTRACT):
                exec(compile(block.text, f"docs/{page}:{block.line}", "exec"), names)
        elif "├──" not in block.text:
            run_commands(block)
    return names


def run_commands(block: Block) -> None:
    """Each line of the block is a command; buckets are folders, and no browser opens."""
    printed = list(printed_commands(block.text))
    assert len(printed) == len(block.text.splitlines()), f"{block.page.name}:{block.line} has lines that nobody runs"
    for words in printed:
        assert main([word.removeprefix("gs://bucket/") for word in words if word != "--open"]) == 0


def test_export(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = follow("export.md", folder, monkeypatch)
    written = names["map_shard"]("arrays/layer_2_out", 0)
    assert (written.shape[1], written.dtype.name) == (64, "bfloat16")
    assert names["x"].shape[1] == 64
    assert len(names["rows"]) > 0
    assert (folder / "for_saelens").is_dir()


def test_view(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = follow("view.md", folder, monkeypatch)
    assert names["table"].density.shape == (_FEATURES,)
    assert np.isfinite(names["table"].density).all()
    assert (folder / "ae.safetensors").exists()
    assert 'id="features-0"' in (folder / "layertap.html").read_text(encoding="utf-8")
    (batch,) = (folder / "np" / "residual.2").glob("batch-*.json")
    assert len(json.loads(batch.read_text())["features"]) > 0
