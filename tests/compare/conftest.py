"""A model, two prompts, and the values that transformers computes for them."""

from collections.abc import Iterator
from pathlib import Path

import dumps
import numpy as np
import pytest
import torch
from verdicts import Look

from layertap.compare.command import Comparison, compare
from layertap.config.compare import CompareConfig


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    """Use one thread in torch. At this size, more threads cost more than they save."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def prompts() -> list[np.ndarray]:
    """Two prompts, of 40 and 25 tokens."""
    return dumps.token_ids(250)


@pytest.fixture(scope="session")
def streams(tiny_model: Path, prompts: list[np.ndarray]) -> list[np.ndarray]:
    """The output of each layer for the first prompt; [tokens, width] each."""
    return [output[0].numpy() for output in dumps.layer_outputs(tiny_model, prompts[0][None])]


@pytest.fixture
def look(tiny_model: Path, tmp_path: Path, prompts: list[np.ndarray]) -> Look:
    """Compare a dump. Its token ids are those of the first prompt, unless others are given."""

    def run(ids: np.ndarray | None = None, /, *, model: Path = tiny_model, **tensors: object) -> Comparison:
        given = {"token_ids": prompts[0] if ids is None else ids, **tensors}
        path = dumps.save(tmp_path / "dump.safetensors", **given)
        return compare(CompareConfig(str(path), model_path=str(model)))

    return run
