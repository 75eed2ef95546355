"""Activations of the demo's model, to train from; and what was reached, at the end of the session.

These tests run in an environment of their own (`make contract`), without tests/conftest.py.
"""

import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")  # a torch for CUDA brings Triton, which needs a GPU

import pytest
import torch

import layertap
from layertap.demo.checkpoint import write_checkpoint
from layertap.demo.tasks import make_tasks, write_tasks

torch.set_num_threads(1)  # small products: several threads would wait for each other
_REPORTED: list[str] = []


@pytest.fixture
def report() -> Callable[[str], None]:
    """A function that keeps a line, which is printed at the end of the session."""
    return _REPORTED.append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in _REPORTED:
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of layer 2 of a model of width 64 on ARC tasks: several shards in bfloat16."""
    folder = tmp_path_factory.mktemp("run")
    write_checkpoint(folder / "model", "tiny")
    write_tasks(folder / "tasks.jsonl", make_tasks(12, seed=0))
    layertap.extract(
        dataset_path=str(folder / "tasks.jsonl"),
        model_path=str(folder / "model"),
        layers_to_extract=[2],
        predictions_per_task=2,
        format="safetensors",
        shard_size_gb=0.002,
        output_dir=str(folder / "activations"),
        checkpointing=False,
    )
    return folder / "activations"


@pytest.fixture
def place(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the programs of the page run. It contains `activations`."""
    (tmp_path / "activations").symlink_to(run)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def held_out(run: Path) -> torch.Tensor:
    """Tokens in an order that no program trains in; float32 [4096, 64]."""
    batches = layertap.ActivationDataset(run).batches(
        4096, layers=[2], exclude={"first", "sink"}, seed=99, as_="torch", dtype="float32"
    )
    return next(iter(batches)).activations[:, 0]
