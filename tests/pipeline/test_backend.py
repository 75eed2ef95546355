"""Where compiled programs are kept, how JAX finds devices, and which device a run names."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from layertap.config.extract import ExtractConfig
from layertap.pipeline import backend
from layertap.pipeline.run import extract

_NAME = "jax_compilation_cache_dir"


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What `configure` tells JAX. It does not reach this process's own JAX."""
    told: dict[str, object] = {}
    monkeypatch.setattr(backend, "jax", SimpleNamespace(config=SimpleNamespace(update=told.__setitem__)))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    return told


def test_programs_of_any_size_are_kept_in_the_users_cache_folder(
    configured: dict[str, object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for cache, home in ((str(tmp_path / "caches"), tmp_path / "caches"), ("", tmp_path / ".cache")):
        monkeypatch.setenv("XDG_CACHE_HOME", cache)
        monkeypatch.setenv("HOME", str(tmp_path))
        backend.configure()
        assert configured[_NAME] == os.fspath(home / "layertap" / "xla")
    assert configured["jax_persistent_cache_min_compile_time_secs"] == 0
    assert configured["jax_persistent_cache_min_entry_size_bytes"] == -1


def test_jaxs_own_variable_wins(configured: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "gs://bucket/xla")
    backend.configure()
    assert _NAME not in configured


def place(folder: Path, *files: str) -> None:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()


@pytest.mark.parametrize("file", ["accel0", "vfio/0", "nvidia0", "nvidiactl", "dxg", "kfd"])
def test_a_device_file_is_a_sign_of_an_accelerator(tmp_path: Path, file: str) -> None:
    place(tmp_path, file)
    assert backend.shows_accelerator(tmp_path, {})


@pytest.mark.parametrize("name", ["TPU_NAME", "TPU_ACCELERATOR_TYPE", "TPU_WORKER_HOSTNAMES", "PJRT_DEVICE"])
def test_a_variable_is_a_sign_of_an_accelerator(tmp_path: Path, name: str) -> None:
    assert backend.shows_accelerator(tmp_path, {name: "something"})


def test_what_any_machine_has_is_no_sign_of_an_accelerator(tmp_path: Path) -> None:
    place(tmp_path, "null", "vfio/vfio", "accel/accel0", "nvme0")  # accel/ holds the NPUs of laptops
    libtpu_and_jax = {"TPU_LIBRARY_PATH": "/libtpu.so", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_ID": "3", "PATH": "/bin"}
    assert not backend.shows_accelerator(tmp_path, libtpu_and_jax)


@pytest.fixture
def only_libtpu(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """JAX's configuration on a machine that has libtpu as its only plugin, and no sign of an
    accelerator.
    """
    config = SimpleNamespace(jax_platforms=None)
    monkeypatch.setattr(backend, "jax", SimpleNamespace(config=config))
    monkeypatch.setattr(backend, "find_spec", lambda name: object() if name == "libtpu" else None)
    monkeypatch.setattr(backend, "entry_points", lambda group: ())
    monkeypatch.setattr(backend, "shows_accelerator", lambda devices, environment: False)
    return config


@pytest.mark.parametrize(("platforms", "left_out"), [(None, True), ("", True), ("cpu", False), ("tpu,cpu", False)])
def test_libtpu_alone_is_left_out_unless_platforms_were_named(
    only_libtpu: SimpleNamespace, platforms: str | None, *, left_out: bool
) -> None:
    """JAX itself advises to set the variable to an empty text."""
    only_libtpu.jax_platforms = platforms
    assert backend.only_libtpu_would_search() is left_out


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
        "import layertap.pipeline; from layertap.pipeline import backend; backend.start()\n"
        "print(backend.platform(), 'libtpu.so' in open('/proc/self/maps').read())"
    )
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    done = subprocess.run([sys.executable, "-c", start], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("cpu False\n", "", 0)


@pytest.mark.parametrize(
    ("flags", "has"),
    [("avx512f avx512_bf16 gfni", True), ("amx_bf16 amx_tile", True), ("avx512f avx512_vnni", False), ("", False)],
)
def test_bfloat16_products_are_told_by_the_processor_s_flags(flags: str, *, has: bool) -> None:
    assert backend.lists_bfloat16(f"processor\t: 0\nflags\t\t: fpu {flags}\nbugs\t: avx512_bf16\n") is has


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of a machine without an accelerator. JAX was told nothing, and found the CPU."""
    root = tmp_path / "root"
    place(root, "dev/nvidiactl", "dev/null", "dev/vfio/vfio", "proc/cpuinfo")
    (root / "proc" / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Some Processor 9000\nflags\t\t: fpu\n")
    monkeypatch.setattr(backend, "_ROOT", root)
    monkeypatch.delenv("TPU_ACCELERATOR_TYPE", raising=False)
    config = SimpleNamespace(jax_platforms=None)
    fake = SimpleNamespace(config=config, devices=jax.devices, default_backend=lambda: "cpu")
    monkeypatch.setattr(backend, "jax", fake)
    return root


def add_pci_device(root: Path, vendor: str) -> None:
    place(root, "sys/bus/pci/devices/0000:00:05.0/vendor")
    (root / "sys/bus/pci/devices/0000:00:05.0/vendor").write_text(f"{vendor}\n")


def test_the_processor_its_cores_and_the_host_are_named(root: Path) -> None:
    first, *more = backend.opening_lines()
    assert first.endswith(f" on CPU (Some Processor 9000, {len(os.sched_getaffinity(0))} cores)")
    assert not more
    assert next(backend.opening_lines(1, 4)).endswith(" cores), host 1 of 4")


def test_devices_are_counted_and_named() -> None:
    assert backend.describe_devices("gpu", "NVIDIA H100 80GB HBM3", 1) == "1 x NVIDIA H100 80GB HBM3"
    assert backend.describe_devices("tpu", "TPU v5 lite", 8) == "8 x TPU v5 lite"


@pytest.mark.parametrize(("file", "named"), [("nvidia0", "an NVIDIA GPU"), ("accel0", "a TPU"), ("vfio/0", "a TPU")])
def test_an_accelerator_that_is_left_alone_is_said_loudly(file: str, named: str, root: Path) -> None:
    add_pci_device(root, "0x1ae0")
    assert backend.unused_accelerator() is None
    place(root, f"dev/{file}")
    _, warning = backend.opening_lines()
    assert warning.startswith("WARNING: THIS RUN COMPUTES ON THE CPU")
    assert f"{named} ({root}/dev/{file})" in warning
    assert "JAX_PLATFORMS=cpu" in warning


def test_a_variable_tells_of_a_tpu_too(root: Path) -> None:
    assert backend.unused_accelerator(environment={"TPU_ACCELERATOR_TYPE": "v5litepod-8"}) is not None


def test_what_a_workstation_lends_to_virtual_machines_is_no_tpu(root: Path) -> None:
    add_pci_device(root, "0x10de")
    place(root, "dev/vfio/0")
    assert backend.unused_accelerator() is None


@pytest.mark.parametrize(("platforms", "lines"), [("cpu", 1), ("cpu,tpu", 1), (None, 2), ("", 2), ("tpu,cpu", 2)])
def test_nobody_who_asks_for_the_cpu_hears_a_warning(platforms: str | None, lines: int, root: Path) -> None:
    place(root, "dev/nvidia0")
    backend.jax.config.jax_platforms = platforms
    assert len(list(backend.opening_lines())) == lines


def test_a_processor_that_the_system_does_not_name_is_named_by_its_kind(tmp_path: Path) -> None:
    assert backend.processor(tmp_path)


@pytest.mark.whole
def test_what_it_computes_on_is_the_first_line_of_a_run(
    config: ExtractConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    extract(config)
    assert capsys.readouterr().err.splitlines()[0].endswith(backend.computing_on())
