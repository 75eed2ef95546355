"""What the real TPU compiler says about a step, on a machine without a TPU.

libtpu (extra `tpu`) compiles for a described topology. The step that is compiled is the run's own
(`StepProgram`), from shapes alone: no weight is read, no memory of that size is needed. The
compiler refuses what does not fit, and says how much it would use.

libtpu reads its settings when JAX starts, so the compilation is a process of its own:
`python -m benchmarks.tpu_compile JSON`. It takes some 10 s (0.5B) to a minute (72B).

What chips send each other is read from the text of the compiled program (XLA's HLO), where an
instruction is written as `name = result operation(operands)`. The compiler may merge several of a
kind into one, whose result is a tuple, and may split one into a start and an end; all of them are
found, each shape by itself.
"""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import ml_dtypes
import numpy as np

from layertap.core.extras import install_command
from layertap.core.taps import Site, layers_to_run
from layertap.errors import DeviceError, DoesNotFitError, UsageError
from layertap.plan.accelerators import parse_accelerator
from layertap.plan.planned import model_config

_INSTRUCTION = re.compile(
    r"= (\(.*?\)|\S+) (all-gather|all-to-all|all-reduce|reduce-scatter|collective-permute)(-start)?\("
)
_SHAPE = re.compile(r"\w+\[[\d,]*\]")

# The result of their start is the operands, then what the end will give, and perhaps scalars.
_STARTED_WITH_OPERANDS = frozenset({"all-gather", "collective-permute"})

# libtpu asks the cloud it expects around it, and takes a lock against a second process: neither
# makes sense here.
COMPILER_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclass(frozen=True)
class TpuStep:
    """A step to compile; `rows` counts the rows on each chip."""

    model: str
    topology: str
    rows: int
    row_length: int
    layers: tuple[int, ...] = ()
    """None stand for all."""
    sites: tuple[Site, ...] = ("residual",)
    mesh: str = "auto"
    prefix: int = 0
    """How many tokens the shared prefix has; their keys and values are arguments."""


@dataclass(frozen=True)
class CompiledStep:
    """What the compiler said; bytes are for one chip."""

    mesh: str
    arguments: int
    """Weights and token ids."""
    temporaries: int
    host_outputs: int
    """Activations, in the host's memory."""
    peak: int
    """Everything in the chip's memory at the worst moment."""
    collectives: Mapping[str, int]
    """What goes over the interconnect: `operation shape` -> how often the program has it."""


def compile_step(step: TpuStep) -> CompiledStep:
    """Have `step` compiled in a process of its own.

    Raises UsageError where libtpu is missing, DoesNotFitError, with the compiler's own figure,
    where it does not fit, and DeviceError where it fails otherwise.
    """
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.tpu_compile", json.dumps(asdict(step))],
        env={**os.environ, **COMPILER_ENVIRONMENT},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return CompiledStep(**json.loads(done.stdout.splitlines()[-1]))
    if "No module named 'libtpu'" in done.stderr or ("libtpu.so" in done.stderr and "cannot open" in done.stderr):
        raise UsageError(f"the TPU compiler is not installed: {install_command('tpu')}")
    if refused := re.search(r"Ran out of memory in memory space hbm\. (Used \S+ of \S+ hbm)", done.stderr):
        raise DoesNotFitError(
            f"{step.model} on {step.topology}, {step.rows} rows of {step.row_length} tokens a chip: does not fit"
            f" ({refused[1]}); take fewer or shorter rows, or more chips"
        )
    raise DeviceError(f"the TPU compiler failed on {step}:\n{done.stderr[-2000:]}")


def compile_here(text: str) -> CompiledStep:
    """Compile the step that `text` holds as JSON, in a process with `COMPILER_ENVIRONMENT`."""
    import layertap.pipeline  # noqa: F401, I001 - quietens XLA, which must come before jax
    from jax.experimental import topologies

    from layertap.pipeline.step import StepProgram, plan_for, resolve_taps
    from layertap.model import weights
    from layertap.model.mesh import auto_shape, make_mesh, parse_mesh, weight_bytes

    given = json.loads(text)
    step = TpuStep(**{**given, "layers": tuple(given["layers"]), "sites": tuple(given["sites"])})
    tpu, config = parse_accelerator(step.topology), model_config(step.model)
    assert tpu.topology is not None
    # The two cores of a v4 or v5p chip are one device to JAX.
    one_device = {"chip_config_name": "megacore"} if step.topology.startswith(("v4", "v5p")) else {}
    described = topologies.get_topology_desc(platform="tpu", topology_name=tpu.topology, **one_device)
    taps = resolve_taps(step.layers, step.sites, config.num_hidden_layers)
    model = weights.abstract_model(config, layers_to_run(taps), ml_dtypes.bfloat16)
    asked = None if step.mesh == "auto" else parse_mesh(step.mesh)
    shape = asked or auto_shape(tpu.chips, weight_bytes(model), tpu.memory_bytes)
    mesh = make_mesh(shape, described.devices)
    program = StepProgram(model, taps, plan_for("tpu", np.dtype(ml_dtypes.bfloat16), mesh))
    chips_of_a_host = sum(device.process_index == 0 for device in mesh.devices.flat)
    compiled = program.lower_and_compile((step.rows * chips_of_a_host, step.row_length), step.prefix)
    memory = compiled.memory_analysis()
    assert memory is not None  # it is optional to JAX; the TPU compiler gives it
    # What the compiler counts as temporary, and as the peak, has what it writes to the host in it.
    to_host = memory.host_output_size_in_bytes
    temporaries, peak = memory.temp_size_in_bytes - to_host, memory.peak_memory_in_bytes - to_host
    sent = collectives(compiled.as_text() or "")
    return CompiledStep(str(shape), memory.argument_size_in_bytes, temporaries, to_host, peak, sent)


def collectives(program: str) -> dict[str, int]:
    """Map `operation shape`, sent over the interconnect, to how often the program has it."""
    found: Counter[str] = Counter()
    for result, operation, start in _INSTRUCTION.findall(program):
        shapes = _SHAPE.findall(result)
        if start and operation in _STARTED_WITH_OPERANDS:
            shapes = [shape for shape in shapes if not shape.endswith("[]")]
            shapes = shapes[len(shapes) // 2 :]
        found.update(f"{operation} {shape}" for shape in shapes)
    return dict(found)


if __name__ == "__main__":
    print(json.dumps(asdict(compile_here(sys.argv[1]))))
