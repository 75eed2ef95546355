"""Several devices in a separate process, and what a second start compiles."""

import shutil
from pathlib import Path

import commands
import families
import numpy as np
import pytest
from peft_adapters import write_adapter
from runs import Activations, activations, require_close, small_flags

from layertap.errors import DeviceError

_COMPILED = """
import sys
from collections import Counter
import layertap.pipeline
import jax
from layertap.cli import extract_main
events = Counter()
jax.monitoring.register_event_listener(lambda event, **_: events.update([event.rpartition("/")[2]]))
status = extract_main()
print("hits", events["cache_hits"], "misses", events["cache_misses"])
sys.exit(status)
"""


def _flags(model: Path, tasks: Path, output: Path, *more: str) -> list[str]:
    folders = {"output_dir": output, "checkpoint_dir": output / "checkpoints"}
    flags = small_flags(tasks, model, max_tasks=8, max_seq_length=4096, compute_dtype="float32", **folders)
    return ["-m", "layertap", "extract", *flags, *more]


def _activations(model: Path, tasks: Path, output: Path, devices: int, mesh: str, *more: str) -> Activations:
    """What a run over so many CPU devices stores."""
    command = _flags(model, tasks, output, "--mesh", mesh, *more)
    done = commands.run(command, output.parent, {"JAX_NUM_CPU_DEVICES": str(devices)})
    assert done.returncode == 0, done.stderr
    return activations(output)


@pytest.mark.whole
@pytest.mark.parametrize(
    "mesh", ["data=2,fsdp=2", *(pytest.param(mesh, marks=pytest.mark.slow) for mesh in ("auto", "fsdp=4"))]
)
def test_four_devices_give_what_one_gives(tiny_model: Path, demo_tasks: Path, tmp_path: Path, mesh: str) -> None:
    """Four devices compute the prefix once; the one device computes it with each prompt."""
    one = _activations(tiny_model, demo_tasks, tmp_path / "one", 1, "auto", "--no_share_prefix")
    four = _activations(tiny_model, demo_tasks, tmp_path / "four", 4, mesh)
    assert len({sample for _, sample in one}) >= 16
    require_close(four, one)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3", "gemma3", "phi3-partial"])
def test_four_devices_give_what_one_gives_in_other_families(
    tiny_model: Path, demo_tasks: Path, tmp_path: Path, family: str
) -> None:
    families.write_family(tmp_path / "model", family, vocab_size=1024)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model / name, tmp_path / "model")
    one = _activations(tmp_path / "model", demo_tasks, tmp_path / "one", 1, "auto", "--no_share_prefix")
    four = _activations(tmp_path / "model", demo_tasks, tmp_path / "four", 4, "data=2,fsdp=2")
    require_close(four, one)


@pytest.mark.slow
def test_an_adapter_is_merged_into_each_devices_part(tiny_model: Path, demo_tasks: Path, tmp_path: Path) -> None:
    settings = {"r": 4, "target_modules": "all-linear", "use_dora": True}
    adapter = write_adapter(tmp_path / "adapter", tiny_model, **settings)
    plain = _activations(tiny_model, demo_tasks, tmp_path / "plain", 1, "auto")
    apart = ("--no_share_prefix", "--adapter", str(adapter))
    one = _activations(tiny_model, demo_tasks, tmp_path / "one", 1, "auto", *apart)
    four = _activations(tiny_model, demo_tasks, tmp_path / "four", 4, "data=2,fsdp=2", "--adapter", str(adapter))
    require_close(four, one)
    assert not any(np.allclose(one[key], plain[key], atol=0.01) for key in one)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "devices", "message"),
    [("data=3", 2, "--mesh data=3,fsdp=1 is 3 devices, but there are 2"), ("fsdp=3", 3, "fsdp=3: does not divide")],
)
def test_a_mesh_that_fits_neither_devices_nor_kernels_is_refused(
    tiny_model: Path, demo_tasks: Path, tmp_path: Path, mesh: str, devices: int, message: str
) -> None:
    command = _flags(tiny_model, demo_tasks, tmp_path / "out", "--mesh", mesh)
    done = commands.run(command, tmp_path, {"JAX_NUM_CPU_DEVICES": str(devices)})
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.slow
def test_a_second_start_compiles_nothing(tiny_model: Path, demo_tasks: Path, tmp_path: Path) -> None:
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    counts = []
    for name in ("first", "second"):
        _, _, _, *flags = _flags(tiny_model, demo_tasks, tmp_path / name)
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
    done = commands.run(_flags(tiny_model, demo_tasks, tmp_path / "out"), tmp_path, {"JAX_PLATFORMS": "abacus"})
    assert done.returncode == DeviceError("").exit_status
    assert "error: JAX finds no device (JAX_PLATFORMS is 'abacus'): " in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
