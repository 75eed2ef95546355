"""Run several workers on a Ray cluster, or on a small one started here. Ray places them.

Each start of a worker is one Ray task in its own process. If its process or machine is lost, the
worker is submitted to Ray again, which finds a place for it (base.py decides when to do so, and
when to give up). Ray's own retries are off, because they count deaths without regard to finished
shards. Exactness depends on the leases, never on Ray: two processes of one worker, on two sides of
a broken network, still commit a shard only once.

A worker that is restarted on the same disk resumes its own shard at once. On another machine, that
shard waits until its lease has run out, and begins again.

Why tasks and not actors? You can interrupt a running task as Ctrl-C interrupts a process (it
releases its shard), but you can only kill a running method of an actor. Only settings and a closing
line go through Ray.
"""

import os
import signal
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any

from layertap.config.extract import ExtractConfig
from layertap.core.extras import install_command
from layertap.errors import LayertapError, UsageError, WorkersFailedError
from layertap.fleet.engines.base import RunningWorker, run_workers, say
from layertap.process.ending import run_guarded

_GRACE_SECONDS = 12.0  # less than the grace after a SIGTERM
_ANSWER_SECONDS = 10.0
_DIED = 1

# Show every worker's lines, even if two are the same.
_ANYWHERE = {"RAY_DEDUP_LOGS": "0"}
# Ray's processes listen only on loopback (the switch is named after the systems where that is Ray's
# default), accept only this user's token, and send no usage reports.
_HERE = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
}
# Nearly the smallest object store that Ray accepts: nothing large goes through it.
_SMALL: dict[str, Any] = {"address": "local", "include_dashboard": False, "object_store_memory": 80_000_000}


def run_ray(config: ExtractConfig) -> str:
    """Run workers as Ray tasks until the dataset is done; raises UsageError if Ray is missing."""
    needs = config.sharded.worker_resources
    with _connect(config.sharded.ray_address) as ray:
        return run_workers(config, partial(_WorkerTask, ray, needs), _GRACE_SECONDS)


@contextmanager
def _connect(address: str | None) -> Iterator[ModuleType]:
    """Connect Ray to `address`, or to its own cluster during the block; Ctrl-C stays ours."""
    ray = _import_ray(_ANYWHERE if address else _ANYWHERE | _HERE)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if address not in (None, "auto"):
        _require_answer(address)
    try:
        ray.init(**({"address": address} if address else _SMALL), logging_level="warning")
    except (OSError, RuntimeError, ValueError) as error:  # ConnectionError is an OSError
        if address is None:
            raise WorkersFailedError(f"Ray could not be started on this machine: {error}") from error
        raise UsageError(f"--ray_address {address}: {error}") from error
    try:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        yield ray
    finally:
        ray.shutdown()


def _import_ray(environment: Mapping[str, str]) -> ModuleType:
    """Import Ray, which then reads the environment; raises UsageError if it is not installed."""
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ModuleNotFoundError as error:
        raise UsageError(f"no module {error.name}: --engine ray needs {install_command('ray')}") from error
    return ray


def _require_answer(address: str) -> None:
    """Raise UsageError if nobody listens at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER_SECONDS).close()
    except OSError as error:
        raise UsageError(
            f"--ray_address {address}: does not answer ({error.strerror or error}); give the address that `ray start"
            " --head` printed, and check that its machine can be reached from here"
        ) from error


class _WorkerTask(RunningWorker):
    def __init__(self, ray: ModuleType, needs: Mapping[str, float], config: ExtractConfig) -> None:
        """Submit the worker to Ray; raises UsageError if Ray refuses its resources, such as 1.5
        GPUs.
        """
        self._ray = ray
        self._worker = config.worker
        options: dict[str, Any] = {"num_cpus": needs.get("CPU", 0), "num_gpus": needs.get("GPU", 0)}
        options["resources"] = {name: needs[name] for name in needs.keys() - {"CPU", "GPU"}}
        try:
            remote = ray.remote(max_calls=1, max_retries=0, scheduling_strategy="SPREAD", **options)(_work)
            self._task = remote.options(name=f"worker {config.worker}").remote(config)
        except ValueError as error:
            raise UsageError(f"--resources_per_worker: Ray refuses {dict(needs)}: {error}") from error
        self._future = self._task.future()

    def poll(self) -> int | None:
        if not self._future.done():
            return None
        try:
            status, words = self._future.result()
        except self._ray.exceptions.TaskCancelledError:
            return _DIED
        except self._ray.exceptions.RayError as error:
            status, words = _DIED, str(error).strip()
        say(f"[{self._worker}] {words}\n")
        return int(status)

    def interrupt(self) -> None:
        self._ray.cancel(self._task, force=False)

    def kill(self) -> None:
        self._ray.cancel(self._task, force=True)


def _work(config: ExtractConfig) -> tuple[int, str]:
    """Run a worker in Ray's process; return its exit status and closing message."""
    words = ""

    def run() -> int:
        from layertap.fleet.worker import work

        nonlocal words
        try:
            words = work(config).describe()
        except LayertapError as error:
            words = f"error: {error}"
            return error.exit_status
        return 0

    return run_guarded(run), words
