"""Where compiled programs are kept, and how JAX finds its devices."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from layertap.extract import backend

_NAME = "jax_compilation_cache_dir"


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What `configure` tells JAX; this process's own JAX hears nothing of it."""
    told: dict[str, object] = {}
    monkeypatch.setattr(backend, "jax", SimpleNamespace(config=SimpleNamespace(update=told.__setitem__)))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    return told


def test_they_are_in_the_users_cache_folder(
    configured: dict[str, object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for cache, home in ((str(tmp_path / "caches"), tmp_path / "caches"), ("", tmp_path / ".cache")):
        monkeypatch.setenv("XDG_CACHE_HOME", cache)
        monkeypatch.setenv("HOME", str(tmp_path))
        backend.configure()
        assert configured[_NAME] == os.fspath(home / "layertap" / "xla")


def test_jaxs_own_variable_wins(configured: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "gs://bucket/xla")
    backend.configure()
    assert _NAME not in configured


def test_programs_of_any_size_are_kept(configured: dict[str, object]) -> None:
    backend.configure()
    assert configured["jax_persistent_cache_min_compile_time_secs"] == 0
    assert configured["jax_persistent_cache_min_entry_size_bytes"] == -1


@pytest.mark.parametrize(
    "file", ["accel0", "vfio/0", "nvidia0", "nvidiactl", "dxg", "kfd"], ids=lambda file: file.replace("/", "-")
)
def test_a_device_file_is_a_sign_of_an_accelerator(tmp_path: Path, file: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    assert backend.shows_accelerator(tmp_path, {})


@pytest.mark.parametrize("name", ["TPU_NAME", "TPU_ACCELERATOR_TYPE", "TPU_WORKER_HOSTNAMES", "PJRT_DEVICE"])
def test_a_variable_is_a_sign_of_an_accelerator(tmp_path: Path, name: str) -> None:
    assert backend.shows_accelerator(tmp_path, {name: "something"})


def test_what_any_machine_has_is_no_sign_of_an_accelerator(tmp_path: Path) -> None:
    for file in ("null", "vfio/vfio", "accel/accel0", "nvme0"):  # accel/ holds the NPUs of laptops
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    libtpu_and_jax = {"TPU_LIBRARY_PATH": "/libtpu.so", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_ID": "3", "PATH": "/bin"}
    assert not backend.shows_accelerator(tmp_path, libtpu_and_jax)


@pytest.fixture
def only_libtpu(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """JAX's configuration where libtpu is the one plugin and nothing shows an accelerator."""
    config = SimpleNamespace(jax_platforms=None)
    monkeypatch.setattr(backend, "jax", SimpleNamespace(config=config))
    monkeypatch.setattr(backend, "find_spec", lambda name: object() if name == "libtpu" else None)
    monkeypatch.setattr(backend, "entry_points", lambda group: ())
    monkeypatch.setattr(backend, "shows_accelerator", lambda devices, environment: False)
    return config


@pytest.mark.parametrize("platforms", [None, ""])  # JAX itself advises to set the variable to nothing
def test_libtpu_alone_is_left_out(only_libtpu: SimpleNamespace, platforms: str | None) -> None:
    only_libtpu.jax_platforms = platforms
    assert backend.only_libtpu_would_search()


@pytest.mark.parametrize("platforms", ["cpu", "tpu,cpu"])
def test_platforms_that_were_named_are_kept(only_libtpu: SimpleNamespace, platforms: str) -> None:
    only_libtpu.jax_platforms = platforms
    assert not backend.only_libtpu_would_search()


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("find_spec", lambda name: None),  # no libtpu
        ("find_spec", lambda name: object()),  # plugins below jax_plugins
        ("entry_points", lambda group: (object(),)),
        ("shows_accelerator", lambda devices, environment: True),
    ],
)
def test_jax_is_left_as_it_is_where_it_may_find_something(
    only_libtpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, name: str, answer: Callable[..., object]
) -> None:
    monkeypatch.setattr(backend, name, answer)
    assert not backend.only_libtpu_would_search()


def test_libtpu_without_a_tpu_is_neither_loaded_nor_heard(tmp_path: Path) -> None:
    pytest.importorskip("libtpu")
    if backend.shows_accelerator(Path("/dev"), os.environ):
        pytest.skip("this machine shows an accelerator")
    start = (
        "import layertap.extract; from layertap.extract import backend; backend.start()\n"
        "print(backend.platform(), 'libtpu.so' in open('/proc/self/maps').read())"
    )
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    done = subprocess.run([sys.executable, "-c", start], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("cpu False\n", "", 0)
