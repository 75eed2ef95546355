"""Several hosts that run one model together, as separate processes on loopback."""

import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import commands


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def running(
    arguments: list[str], folder: Path, count: int, environment: Mapping[str, str] | None = None
) -> Iterator[list[subprocess.Popen[str]]]:
    """Start the same command on every host, with two devices each.

    What still runs at the end is killed.
    """
    meeting = ["--multihost", "--num_hosts", str(count), "--coordinator_address", f"127.0.0.1:{free_port()}"]
    command = ["-m", "layertap", "extract", *arguments, *meeting]
    devices = {"JAX_NUM_CPU_DEVICES": "2", **(environment or {})}
    processes = [commands.start([*command, "--host_id", str(host)], folder, devices) for host in range(count)]
    try:
        yield processes
    finally:
        for process in processes:
            kill(process)
            process.communicate()


def kill(process: subprocess.Popen[str]) -> None:
    """Send SIGKILL to a host and to the child that it supervises."""
    for pid in [*_children(process), process.pid]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _children(process: subprocess.Popen[str]) -> list[int]:
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return list(map(int, path.read_text().split())) if path.exists() else []


def run(arguments: list[str], folder: Path, count: int, environment: Mapping[str, str] | None = None) -> list[str]:
    """Return the standard outputs of hosts that all end well."""
    with running(arguments, folder, count, environment) as processes:
        outputs = [process.communicate(timeout=280) for process in processes]
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors
    return [output for output, _ in outputs]
