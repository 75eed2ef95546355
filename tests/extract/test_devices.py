"""Several devices in a process of their own, and what a second start compiles."""

from pathlib import Path

import commands
import numpy as np
import pytest
import shards

from layertap.errors import DeviceError

_COMPILED = """
import sys
from collections import Counter
import layertap.extract
import jax
from layertap.cli import extract_main
events = Counter()
jax.monitoring.register_event_listener(lambda event, **_: events.update([event.rpartition("/")[2]]))
status = extract_main()
print("hits", events["cache_hits"], "misses", events["cache_misses"])
sys.exit(status)
"""


def _flags(model: Path, tasks: Path, output: Path, *more: str) -> list[str]:
    settings = {
        "dataset_path": tasks,
        "model_path": model,
        "max_tasks": 8,
        "predictions_per_task": 2,
        "row_length": 1024,
        "batch_size": 2,
        "window_samples": 16,
        "max_seq_length": 4096,
        "compute_dtype": "float32",
        "output_dir": output,
        "checkpoint_dir": output / "checkpoints",
    }
    return [*(part for name, value in settings.items() for part in (f"--{name}", str(value))), *more]


def _activations(model: Path, tasks: Path, output: Path, devices: int, mesh: str) -> dict[tuple[int, int], np.ndarray]:
    """(layer, sample_idx) -> activations, of a run over so many CPU devices."""
    command = ["-m", "layertap", "extract", *_flags(model, tasks, output, "--mesh", mesh)]
    done = commands.run(command, output.parent, {"JAX_NUM_CPU_DEVICES": str(devices)})
    assert done.returncode == 0, done.stderr
    return {
        (layer, index): entry["activation"]
        for layer in range(4)
        for index, entry in shards.samples(output, layer).items()
    }


@pytest.mark.parametrize(
    "mesh", ["data=2,fsdp=2", *(pytest.param(mesh, marks=pytest.mark.slow) for mesh in ("auto", "fsdp=4"))]
)
def test_four_devices_give_what_one_gives(tiny_model: Path, demo_tasks: Path, tmp_path: Path, mesh: str) -> None:
    one = _activations(tiny_model, demo_tasks, tmp_path / "one", 1, "auto")
    four = _activations(tiny_model, demo_tasks, tmp_path / "four", 4, mesh)
    assert set(four) == set(one)
    assert len({sample for _, sample in one}) >= 16
    for key, value in one.items():
        np.testing.assert_allclose(four[key], value, rtol=1e-5, atol=1e-5, err_msg=str(key))


@pytest.mark.slow
def test_a_mesh_of_another_size_is_refused(tiny_model: Path, demo_tasks: Path, tmp_path: Path) -> None:
    flags = _flags(tiny_model, demo_tasks, tmp_path / "out", "--mesh", "data=3")
    done = commands.run(["-m", "layertap", "extract", *flags], tmp_path, {"JAX_NUM_CPU_DEVICES": "2"})
    assert done.returncode == 2
    assert "--mesh data=3,fsdp=1 is 3 devices, but there are 2" in done.stderr


@pytest.mark.slow
def test_a_mesh_that_cuts_no_kernel_evenly_is_refused(tiny_model: Path, demo_tasks: Path, tmp_path: Path) -> None:
    flags = _flags(tiny_model, demo_tasks, tmp_path / "out", "--mesh", "fsdp=3")
    done = commands.run(["-m", "layertap", "extract", *flags], tmp_path, {"JAX_NUM_CPU_DEVICES": "3"})
    assert done.returncode == 2
    assert "--mesh fsdp=3: does not divide" in done.stderr


@pytest.mark.slow
def test_a_second_start_compiles_nothing(tiny_model: Path, demo_tasks: Path, tmp_path: Path) -> None:
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    counts = []
    for name in ("first", "second"):
        flags = _flags(tiny_model, demo_tasks, tmp_path / name)
        done = commands.run(["-c", _COMPILED, *flags], tmp_path, cache)
        assert done.returncode == 0, done.stderr
        _, hits, _, misses = done.stdout.splitlines()[-1].split()
        counts.append((int(hits), int(misses)))
    (_, compiled), (found, compiled_again) = counts
    assert compiled > 0
    assert compiled_again == 0
    assert found >= compiled


@pytest.mark.slow
def test_a_device_that_jax_does_not_find_is_named(tiny_model: Path, demo_tasks: Path, tmp_path: Path) -> None:
    command = ["-m", "layertap", "extract", *_flags(tiny_model, demo_tasks, tmp_path / "out")]
    done = commands.run(command, tmp_path, {"JAX_PLATFORMS": "abacus"})
    assert done.returncode == DeviceError("").exit_status
    assert "error: JAX finds no device (JAX_PLATFORMS is 'abacus'): " in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
