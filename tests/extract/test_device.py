"""What a run says it computes on."""

import os
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
import runs

from layertap.extract import backend
from layertap.extract.run import extract


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of a machine without an accelerator."""
    root = tmp_path / "root"
    (root / "dev" / "vfio").mkdir(parents=True)
    (root / "proc").mkdir()
    (root / "proc" / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Some Processor 9000\nflags\t\t: fpu\n")
    for name in ("nvidiactl", "null", "vfio/vfio"):
        (root / "dev" / name).touch()
    monkeypatch.setattr(backend, "_ROOT", root)
    monkeypatch.delenv("TPU_ACCELERATOR_TYPE", raising=False)
    return root


def add_pci_device(root: Path, vendor: str) -> None:
    folder = root / "sys" / "bus" / "pci" / "devices" / "0000:00:05.0"
    folder.mkdir(parents=True)
    (folder / "vendor").write_text(f"{vendor}\n")


def unasked(monkeypatch: pytest.MonkeyPatch, platforms: str | None = None) -> None:
    """JAX was told these platforms, and computes on the CPU."""
    config = SimpleNamespace(jax_platforms=platforms)
    fake = SimpleNamespace(config=config, devices=jax.devices, default_backend=lambda: "cpu")
    monkeypatch.setattr(backend, "jax", fake)


def test_the_processor_and_its_cores_are_named(root: Path) -> None:
    first, *more = backend.opening_lines()
    assert first.endswith(f" on CPU (Some Processor 9000, {len(os.sched_getaffinity(0))} cores)")
    assert not more


def test_devices_are_counted_and_named() -> None:
    assert backend.describe_devices("gpu", "NVIDIA H100 80GB HBM3", 1) == "1 x NVIDIA H100 80GB HBM3"
    assert backend.describe_devices("tpu", "TPU v5 lite", 8) == "8 x TPU v5 lite"


def test_a_host_says_which_it_is(root: Path) -> None:
    assert next(backend.opening_lines(1, 4)).endswith(", host 1 of 4")


@pytest.mark.parametrize(("file", "named"), [("nvidia0", "an NVIDIA GPU"), ("accel0", "a TPU"), ("vfio/0", "a TPU")])
def test_an_accelerator_that_is_left_alone_is_said_loudly(
    file: str, named: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_pci_device(root, "0x1ae0")
    assert backend.unused_accelerator() is None
    (root / "dev" / file).touch()
    unasked(monkeypatch)
    _, warning = backend.opening_lines()
    assert warning.startswith("WARNING: THIS RUN COMPUTES ON THE CPU")
    assert f"{named} ({root}/dev/{file})" in warning
    assert "JAX_PLATFORMS=cpu" in warning


def test_a_variable_tells_of_a_tpu_too(root: Path) -> None:
    assert backend.unused_accelerator(environment={"TPU_ACCELERATOR_TYPE": "v5litepod-8"}) is not None


def test_what_a_workstation_lends_to_virtual_machines_is_no_tpu(root: Path) -> None:
    add_pci_device(root, "0x10de")
    (root / "dev" / "vfio" / "0").touch()
    assert backend.unused_accelerator() is None


@pytest.mark.parametrize(("platforms", "lines"), [("cpu", 1), ("cpu,tpu", 1), (None, 2), ("", 2), ("tpu,cpu", 2)])
def test_whoever_asks_for_the_cpu_hears_no_warning(
    platforms: str | None, lines: int, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "dev" / "nvidia0").touch()
    unasked(monkeypatch, platforms)
    assert len(list(backend.opening_lines())) == lines


def test_a_processor_that_the_system_does_not_name_is_named_by_its_kind(tmp_path: Path) -> None:
    assert backend.processor(tmp_path)


def test_it_is_the_first_line_of_a_run(
    root: Path, tiny_model: Path, demo_tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extract(runs.small_run(demo_tasks, tiny_model, tmp_path, max_tasks=1, predictions_per_task=1))
    assert capsys.readouterr().err.splitlines()[0].endswith(backend.computing_on())
