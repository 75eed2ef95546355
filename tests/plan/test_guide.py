"""The plan that docs/tpu.md prints is what the command prints."""

import re
import shlex
from pathlib import Path

import commands
import pytest

from layertap.cli import main

PAGE = (commands.ROOT / "docs" / "tpu.md").read_text()
PRINTED = re.search(r"    (layertap plan --model 7b .*?)\n\n(    run .*?)\n\n", PAGE, re.DOTALL)


def lines_of(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines()]


def print_plan(capsys: pytest.CaptureFixture[str], *flags: str | Path) -> list[str]:
    assert PRINTED is not None
    arguments = shlex.split(PRINTED[1].replace("\\\n", " "))[1:]
    assert main([*arguments, *map(str, flags)]) == 0
    return lines_of(capsys.readouterr().out)


def test_all_but_memory_is_as_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert PRINTED is not None
    assert without_memory(print_plan(capsys, "--no_compiler")) == without_memory(lines_of(PRINTED[2]))


@pytest.mark.proof
@pytest.mark.timeout(1200)
def test_memory_too_is_as_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert PRINTED is not None
    assert print_plan(capsys) == lines_of(PRINTED[2])


def without_memory(lines: list[str]) -> list[str]:
    return [line for line in lines if " of 16 GB (" not in line]
