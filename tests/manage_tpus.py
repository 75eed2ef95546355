"""scripts/manage_tpus.sh as a process of its own, pointed at a Cloud TPU on loopback."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import commands
from fakes.cloud_tpu import PROJECT, FakeCloudTpu

SCRIPT = commands.ROOT / "scripts" / "manage_tpus.sh"

TWO_ZONES = "--zones us-central1-a,us-central1-b --workers_per_zone 4"
HOME_A, HOME_B = (
    [f"tpu-us-central1-{zone}-{worker}" for worker in ids] for zone, ids in (("a", range(4)), ("b", range(4, 8)))
)
ALL = dict(enumerate([*HOME_A, *HOME_B]))


def posts(cloud: FakeCloudTpu) -> int:
    return sum(line.startswith("POST") for line in cloud.log)


def start(cloud: FakeCloudTpu, command: str) -> subprocess.Popen[str]:
    """`manage_tpus.sh COMMAND`, with the endpoint and a quick poll added."""
    return subprocess.Popen(
        [str(SCRIPT), *shlex.split(command), "--api_endpoint", cloud.endpoint, "--poll_seconds", "0.05"],
        cwd=commands.ROOT,
        env={
            **os.environ,
            "PYTHON": sys.executable,
            "PYTHONPATH": str(commands.ROOT / "src"),
            "GOOGLE_CLOUD_PROJECT": PROJECT,
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(cloud: FakeCloudTpu, command: str) -> str:
    """The standard output of a command that has to end well."""
    process = start(cloud, command)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return output


@contextmanager
def running(cloud: FakeCloudTpu, command: str) -> Iterator[subprocess.Popen[str]]:
    process = start(cloud, command)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def interrupt(process: subprocess.Popen[str]) -> str:
    """Ctrl-C; returns the standard error output."""
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    return errors


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "never came true"
        time.sleep(0.01)
