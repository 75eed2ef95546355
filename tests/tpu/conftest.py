"""A Cloud TPU on loopback, and the commands pointed at it."""

from collections.abc import Callable, Iterator

import pytest
from fakes.cloud_tpu import PROJECT, FakeCloudTpu

from layertap.cli import main

Tpu = Callable[..., int]


@pytest.fixture
def cloud() -> Iterator[FakeCloudTpu]:
    with FakeCloudTpu() as cloud:
        yield cloud


@pytest.fixture
def tpu(cloud: FakeCloudTpu, monkeypatch: pytest.MonkeyPatch) -> Tpu:
    """`layertap tpu ARGUMENTS`, in this process; returns the exit status."""
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", PROJECT)

    def run(command: str, *flags: str) -> int:
        arguments = [*command.split(), *flags]
        return main(["tpu", *arguments, "--api_endpoint", cloud.endpoint, "--poll_seconds", "0.02"])

    return run
