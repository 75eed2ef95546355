"""A Cloud TPU on loopback, and the commands pointed at it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import commands
import manage_tpus
import pytest
from fakes.cloud_tpu import PROJECT, FakeCloudTpu

from layertap.cli import main

Tpu = Callable[..., int]
Running = Callable[[FakeCloudTpu, str], AbstractContextManager[manage_tpus.Process]]


@pytest.fixture
def cloud() -> Iterator[FakeCloudTpu]:
    with FakeCloudTpu() as cloud:
        yield cloud


@pytest.fixture
def tpu(cloud: FakeCloudTpu, monkeypatch: pytest.MonkeyPatch) -> Tpu:
    """Run `layertap tpu ARGUMENTS` in this process, and return the exit status."""
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", PROJECT)

    def run(command: str, *flags: str) -> int:
        arguments = [*command.split(), *flags]
        return main(["tpu", *arguments, "--api_endpoint", cloud.endpoint, "--poll_seconds", "0.02"])

    return run


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> Running:
    """Return a function that starts a long command in a thread. The command ends with the block."""
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", PROJECT)
    monkeypatch.chdir(commands.ROOT)
    return manage_tpus.running_here
