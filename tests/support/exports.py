"""Exports by the command, and what they should hold, taken from the reader sample by sample."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layertap import ActivationDataset
from layertap.cli import main
from layertap.core.taps import Tap

FORMS = ("saelens", "memmap", "hf")


def told(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Run a command that must succeed, and return what it says."""
    status = main(["export", *map(str, arguments)])
    said = capsys.readouterr()
    assert status == 0, said.err
    return said.out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path, status: int = 2) -> str:
    """Run a command that must be refused, and return its message."""
    assert main(["export", *map(str, arguments)]) == status
    said = capsys.readouterr()
    assert said.out == ""
    return said.err


def values(source: str | Path, tap: Tap) -> np.ndarray:
    """[tokens, width] of all samples, in the dataset's order."""
    return np.concatenate([sample.activation(*tap) for sample in ActivationDataset(source)])


def column(source: str | Path, name: str) -> np.ndarray:
    """[tokens] of all samples, in the dataset's order."""
    return np.concatenate([sample.column(name) for sample in ActivationDataset(source)])


def contents(folder: Path) -> dict[str, bytes]:
    """All files, byte for byte."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def bits(array: Any) -> list[int]:
    """For comparisons to the last bit."""
    return np.ascontiguousarray(array).view(np.uint8).tolist()
