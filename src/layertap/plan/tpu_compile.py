"""What the real TPU compiler says of a step, on a machine that has no TPU.

libtpu (extra `tpu`) compiles for a described topology. The step that is compiled is the run's own (`StepProgram`), from
shapes alone: no weight is read, no memory of that size is needed. The compiler refuses what does not fit, and says how
much it would use.

libtpu reads its settings when JAX starts, so the compilation is a process of its own:
`python -m layertap.plan.tpu_compile JSON`. It takes some 10 s (0.5B) to a minute (72B).
"""

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from layertap.core.extras import install_command
from layertap.core.taps import Site
from layertap.errors import DeviceError, DoesNotFitError, UsageError
from layertap.plan.collectives import collectives
from layertap.plan.models import model_config
from layertap.plan.topologies import Topology, parse_topology

# libtpu asks the cloud it expects around it, and takes a lock against a second process: neither makes sense here.
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclass(frozen=True)
class TpuStep:
    """A step to compile; `rows` are those on each chip."""

    model: str
    topology: str
    rows: int
    row_length: int
    layers: tuple[int, ...] = ()
    """None stand for all."""
    sites: tuple[Site, ...] = ("residual",)
    mesh: str = "auto"


@dataclass(frozen=True)
class CompiledStep:
    """What the compiler said; bytes are of one chip."""

    mesh: str
    arguments: int
    """Weights and token ids."""
    temporaries: int
    host_outputs: int
    """Activations, in the host's memory."""
    peak: int
    """All that stands in the chip's memory at the worst moment."""
    collectives: dict[str, int]
    """What goes over the interconnect (plan/collectives.py)."""
    seconds: float
    """How long compiling took."""


def compile_step(step: TpuStep) -> CompiledStep:
    """Have `step` compiled in a process of its own.

    Raises UsageError where libtpu is missing, DoesNotFitError, with the compiler's own figure, where it does not fit,
    and DeviceError where it fails otherwise.
    """
    done = subprocess.run(
        [sys.executable, "-m", "layertap.plan.tpu_compile", json.dumps(dataclasses.asdict(step))],
        env={**os.environ, **_ENVIRONMENT},
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


def _compile_here(step: TpuStep) -> CompiledStep:
    """Compile in this process, whose environment is `_ENVIRONMENT`."""
    import layertap.extract  # noqa: F401, I001 - quietens XLA, which must come before jax
    from jax.experimental import topologies

    from layertap.extract.step import StepProgram, plan_for, resolve_taps
    from layertap.model import weights
    from layertap.model.mesh import auto_shape, make_mesh, parse_mesh, weight_bytes

    topology, config = parse_topology(step.topology), model_config(step.model)
    described = topologies.get_topology_desc(platform="tpu", topology_name=str(topology), **_megacore(topology))
    taps = resolve_taps(step.layers, step.sites, config.num_hidden_layers)
    model = weights.abstract_model(config, taps[-1].layer + 1, ml_dtypes.bfloat16)
    shape = (
        auto_shape(topology.chips, weight_bytes(model), topology.kind.memory_bytes)
        if step.mesh == "auto"
        else parse_mesh(step.mesh)
    )
    mesh = make_mesh(shape, described.devices)
    begun = time.monotonic()
    program = StepProgram(model, taps, plan_for("tpu", np.dtype(ml_dtypes.bfloat16), mesh))
    chips_of_a_host = sum(device.process_index == 0 for device in mesh.devices.flat)
    compiled = program.lower_and_compile((step.rows * chips_of_a_host, step.row_length))
    memory, text = compiled.memory_analysis(), compiled.as_text()
    assert memory is not None  # both are optional to JAX; the TPU compiler gives them
    assert text is not None
    return CompiledStep(
        mesh=str(shape),
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes - memory.host_output_size_in_bytes,
        host_outputs=memory.host_output_size_in_bytes,
        # Both figures of the compiler count what it writes to the host as if it stood in the chip's memory.
        peak=memory.peak_memory_in_bytes - memory.host_output_size_in_bytes,
        collectives=collectives(text),
        seconds=round(time.monotonic() - begun, 1),
    )


def _megacore(topology: Topology) -> dict[str, str]:
    """The two cores of a v4 or v5p chip are one device to JAX."""
    return {"chip_config_name": "megacore"} if topology.kind.cores_in_name == 2 else {}


def main() -> None:
    """Compile the step in the first argument, and print what the compiler said, as JSON."""
    given = json.loads(sys.argv[1])
    step = TpuStep(**{**given, "layers": tuple(given["layers"]), "sites": tuple(given["sites"])})
    print(json.dumps(dataclasses.asdict(_compile_here(step))))


if __name__ == "__main__":
    main()
