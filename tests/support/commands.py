"""Layertap as a process of its own, as a user starts it."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def start(
    arguments: Sequence[str | Path], folder: Path, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start `python ARGUMENTS` in `folder`; its output is captured."""
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(
    arguments: Sequence[str | Path], folder: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS` in `folder` to its end."""
    process = start(arguments, folder, environment)
    output, errors = process.communicate(timeout=280)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)
