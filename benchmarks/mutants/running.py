"""Runs the tests of a module against mutants of it, each in a fork of one process that has imported
JAX already.

A mutant takes the place of its module in a copy of `src` that is made of links. That copy comes
first on the path of the fork, and of the processes that its tests start, unless they are given
another path. JAX is imported before the fork, but starts its threads after it. Hypothesis draws the
same examples each time, keeps none and shrinks none, so that two runs agree.

A mutant is found if a test fails, if the tests cannot be collected, or if they take more than twice
their usual processor time and 10 s: people notice an endless loop. Processor time is the limit
because it is the same on a busy machine. Only the tests that `drawing.TESTS` lists are run: a fault
that only a run of the whole command shows counts as survived, because such runs are too slow to ask
for each mutant, and too slow to tell you what is wrong.
"""

import contextlib
import gc
import importlib
import json
import os
import resource
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import Phase, settings

Outcome = Literal["found", "timeout", "survived"]

_PRELOADED = """
    pytest _pytest.assertion.rewrite hypothesis hypothesis.strategies numpy ml_dtypes jax jax.numpy flax.nnx jaxtyping
    jax.experimental.multihost_utils jax.experimental.topologies jax.experimental.mesh_utils jax.experimental.pallas
    jax.experimental.pallas.triton jax.experimental.pallas.ops.tpu.splash_attention safetensors.numpy tokenizers
    beartype huggingface_hub.hf_api fsspec google.cloud.storage crc32c requests jinja2.sandbox tyro tqdm
"""
# The warning is about plugins, which are imported before the fork.
_FLAGS = "-x -q --tb=no -p no:cacheprovider -p no:xdist -p no:anyio -W ignore::pytest.PytestAssertRewriteWarning"
_WALL_FACTOR = 20  # a busy machine is no fault


@dataclass(frozen=True)
class Run:
    """How the tests of a module went."""

    status: int
    """That of pytest; negative: the signal that ended it."""
    processor_s: float
    wall_s: float


@dataclass(frozen=True)
class Usual:
    """What the tests of a module take without a mutant."""

    processor_s: float
    wall_s: float
    durations: Mapping[str, float]
    """Seconds of each test."""


def preload(root: Path) -> None:
    """Import what all tests need, of other people's; nothing of Layertap, which is mutated."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(root / ".pytest_cache" / "xla"))
    for name in _PRELOADED.split():
        importlib.import_module(name)
    if threading.active_count() > 1 or len(os.listdir("/proc/self/task")) > 1:
        raise RuntimeError(f"an import started a thread, so forks are not safe: {threading.enumerate()}")
    if any(name.partition(".")[0] == "layertap" for name in sys.modules):
        raise RuntimeError("layertap is imported already, so mutants would not be")
    gc.freeze()  # collecting what all forks share costs each of them more than its tests


class ModuleTests:
    """The tests of one module of the checkout `root`, run in `folder`."""

    def __init__(self, root: Path, source: Path, tests: tuple[str, ...], folder: Path) -> None:
        self._root = root
        self._tests = [str(root / "tests" / test) for test in tests]
        self._folder = folder
        self._place = _linked(root / "src", source, folder / "src")
        self._original = source.read_text()
        self._age = 0

    def usual(self) -> Usual:
        """Run the tests on the module as it is; RuntimeError where they fail."""
        self._put(self._original)
        kept = self._folder / "durations.json"
        run = self._run(limits=None, plugin=_Measuring(kept))
        if run.status:
            raise RuntimeError(f"{self._tests} fail without a mutant:\n{self._log.read_text()}")
        return Usual(run.processor_s, run.wall_s, json.loads(kept.read_text()))

    def outcome(self, text: str, usual: Usual) -> tuple[Outcome, Run]:
        """Run the tests on the module with another source."""
        self._put(text)
        run = self._run(limits=(2 * usual.processor_s + 10, _WALL_FACTOR * usual.wall_s + 60), plugin=_Ordered(usual))
        if run.status in (-signal.SIGXCPU, -signal.SIGKILL):
            return "timeout", run
        if run.status == 5:
            raise RuntimeError(f"no test was collected:\n{self._log.read_text()}")
        return ("found" if run.status else "survived"), run

    @property
    def last_failure(self) -> str:
        """The first test that failed, of the last run."""
        lines = self._log.read_text(errors="replace").splitlines()
        return next((line for line in lines if line.startswith(("FAILED", "ERROR"))), "")

    @property
    def _log(self) -> Path:
        return self._folder / "log"

    def _put(self, text: str) -> None:
        self._place.write_text(text)
        self._age += 1  # another one each time: Python takes a compiled file by its source's age and size
        os.utime(self._place, (self._age, self._age))

    def _run(self, limits: tuple[float, float] | None, plugin: object) -> Run:
        with tempfile.TemporaryDirectory(dir=self._folder) as scratch:
            began = time.monotonic()
            child = os.fork()
            if child == 0:
                self._be_pytest(Path(scratch), limits[0] if limits else None, plugin)
            status, used = _wait(child, limits[1] if limits else None)
        return Run(os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, time.monotonic() - began)

    def _be_pytest(self, scratch: Path, processor_s: float | None, plugin: object) -> None:
        """Be the fork, which ends here."""
        status = 3
        try:
            os.setsid()
            output = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            self._prepare_imports(writes=processor_s is None)
            if processor_s is not None:
                resource.setrlimit(resource.RLIMIT_CPU, (int(processor_s), int(processor_s) + 5))
            flags = [*_FLAGS.split(), "-m", "not slow", "--basetemp", str(scratch / "base")]
            status = int(pytest.main([*flags, *self._tests], plugins=[plugin]))
        finally:
            if sys.exc_info()[0]:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _prepare_imports(self, *, writes: bool) -> None:
        """Make the copy of `src` what is imported; only the run without a mutant `writes` compiled
        files.
        """
        source = str(self._folder / "src")
        os.chdir(self._root)
        os.environ["PYTHONPATH"] = source
        sys.path[:] = [source, *(path for path in sys.path if not Path(path, "benchmarks", "mutants").is_dir())]
        sys.dont_write_bytecode = not writes
        sys.pycache_prefix = str(self._folder / "compiled")


def _linked(source: Path, module: Path, target: Path) -> Path:
    """Make `target` a copy of the folder `source`, with links to all files except `module`.

    Returns the path where `module` has to go.
    """
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path == module or path.name == "__pycache__" or path.suffix == ".egg-info":
            continue
        if path in module.parents:
            _linked(path, module, target / path.name)
        else:
            (target / path.name).symlink_to(path)
    return target / module.relative_to(source)


def _wait(child: int, wall_s: float | None) -> tuple[int, resource.struct_rusage]:
    """Wait for the end of a fork, which comes to an end in so many seconds; then end what it left
    behind.
    """
    ends = time.monotonic() + wall_s if wall_s is not None else float("inf")
    pause = 0.01
    while True:
        ended, status, used = os.wait4(child, os.WNOHANG)
        if ended:
            break
        if time.monotonic() > ends:
            os.killpg(child, signal.SIGKILL)
        time.sleep(pause)
        pause = min(2 * pause, 0.2)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    return status, used


class _Repeatable:
    """Hypothesis without memory, chance and shrinking."""

    def pytest_configure(self) -> None:
        phases = (Phase.explicit, Phase.generate)
        settings.register_profile("mutants", settings(), database=None, derandomize=True, phases=phases)
        settings.load_profile("mutants")


class _Measuring(_Repeatable):
    """Keeps how long each test takes."""

    def __init__(self, kept: Path) -> None:
        self._kept = kept
        self._durations: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._durations[report.nodeid] = self._durations.get(report.nodeid, 0.0) + report.duration

    def pytest_sessionfinish(self) -> None:
        self._kept.write_text(json.dumps(self._durations))


class _Ordered(_Repeatable):
    """Runs the quickest tests of each file first."""

    def __init__(self, usual: Usual) -> None:
        self._durations = usual.durations

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        files = list(dict.fromkeys(item.path for item in items))
        items.sort(key=lambda item: (files.index(item.path), self._durations.get(item.nodeid, 0.0)))
