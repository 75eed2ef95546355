"""scripts/manage_tpus.sh, pointed at a Cloud TPU on loopback: as a process of its own, or its
command in a thread.

A thread starts at once. A process takes a second of the processor to import Google's client. But a
thread is interrupted only while the command pauses. And there can be only one at a time, since its
output is captured for the whole process. So tests of signals, and of two commands beside each
other, need processes.
"""

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from types import SimpleNamespace
from unittest.mock import patch

import commands
from fakes.cloud_tpu import PROJECT, FakeCloudTpu

from layertap import cli
from layertap.config.arguments import parse
from layertap.errors import LayertapError

SCRIPT = commands.ROOT / "scripts" / "manage_tpus.sh"

TWO_ZONES = "--zones us-central1-a,us-central1-b --workers_per_zone 4"
HOME_A, HOME_B = (
    [f"tpu-us-central1-{zone}-{worker}" for worker in ids] for zone, ids in (("a", range(4)), ("b", range(4, 8)))
)
ALL = dict(enumerate([*HOME_A, *HOME_B]))


def posts(cloud: FakeCloudTpu) -> int:
    return sum(line.startswith("POST") for line in cloud.log)


@contextmanager
def running(cloud: FakeCloudTpu, command: str) -> Iterator[subprocess.Popen[str]]:
    """Start `manage_tpus.sh COMMAND`, with the endpoint and quick polling added."""
    process = subprocess.Popen(
        [str(SCRIPT), *shlex.split(command), *_quick(cloud)],
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
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _quick(cloud: FakeCloudTpu) -> list[str]:
    return ["--api_endpoint", cloud.endpoint, "--poll_seconds", "0.05"]


class Thread:
    """`layertap tpu COMMAND` in a thread, with what the tests use of `subprocess.Popen`."""

    def __init__(self, cloud: FakeCloudTpu, command: str) -> None:
        name, *words = shlex.split(command)
        self._words = [*words, *_quick(cloud)]
        self._command = cli._TPU_COMMANDS[name]
        self._interrupted = threading.Event()
        self._printed, self._told = StringIO(), StringIO()
        self._status: int | None = None
        self.returncode: int | None = None
        self._thread = threading.Thread(target=self._run, name=f"layertap tpu {command}")
        self._thread.start()

    def _run(self) -> None:
        clock = SimpleNamespace(sleep=self._pause, monotonic=time.monotonic)
        with redirect_stdout(self._printed), redirect_stderr(self._told), patch("layertap.tpu.drive.time", clock):
            try:
                self._status = self._command.run(parse(self._command.config, self._words, prog="layertap tpu"))
            except LayertapError as error:
                print(f"error: {error}", file=sys.stderr)
                self._status = error.exit_status
            except KeyboardInterrupt:
                self._status = 130

    def _pause(self, seconds: float) -> None:
        if self._interrupted.wait(seconds):
            raise KeyboardInterrupt

    def send_signal(self, _number: int) -> None:
        self._interrupted.set()

    def poll(self) -> int | None:
        self.returncode = None if self._thread.is_alive() else self._status
        return self.returncode

    def communicate(self, timeout: float) -> tuple[str, str]:
        self._thread.join(timeout)
        assert not self._thread.is_alive(), "it still runs"
        self.poll()
        return self._printed.getvalue(), self._told.getvalue()


@contextmanager
def running_here(cloud: FakeCloudTpu, command: str) -> Iterator[Thread]:
    thread = Thread(cloud, command)
    try:
        yield thread
    finally:
        thread.send_signal(signal.SIGINT)
        thread.communicate(timeout=60)


Process = subprocess.Popen[str] | Thread


def interrupt(process: Process) -> str:
    """Ctrl-C; returns the standard error output."""
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    return errors


def wait_for(condition: Callable[[], bool], process: Process) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate(timeout=60)
        assert time.monotonic() < deadline, "never came true"
        time.sleep(0.01)
