"""What can be rented, by name, with the figures that decide how fast it can be.

TPUs are those of `topologies`; GPUs are SXM modules of one host. Sources: NVIDIA's data sheets (dense bfloat16 peak,
memory, NVLink in one direction, PCIe 4 or 5 x16 less a fifth), for TPUs the scaling book and Google's pages.
"""

import os
import re
from dataclasses import dataclass, replace
from typing import Literal

from layertap.errors import UsageError
from layertap.plan.assumptions import GPU_DISK, TPU_DISK, Assumption
from layertap.plan.topologies import Topology, parse_topology

# float32 products are six bfloat16 ones on TPU (jax.lax.Precision.HIGHEST).
_TPU_FLOAT32_PASSES = 6
# A slice of more than 8 v5e or v6e chips is made of VMs with 4.
_CHIPS_PER_HOST_IN_SLICES = 4
# One link in both directions; what is gathered goes over one axis at least (scaling book, tpus).
_TPU_LINK = {"v4": 9e10, "v5e": 9e10, "v5p": 1.8e11, "v6e": 1.8e11}


@dataclass(frozen=True)
class Accelerator:
    """One thing that is rented as a whole; rates are of one chip, where nothing else is said."""

    name: str
    platform: Literal["tpu", "gpu", "cpu"]
    chips: int
    hosts: int
    memory_bytes: int
    """Of one chip; on cpu, of the machine."""
    bf16_flops: float = 0.0
    """Peak; 0 on cpu, where it is measured."""
    float32_flops: float = 0.0
    memory_bandwidth: float = 0.0
    host_bandwidth: float = 0.0
    """Bytes a second from the chip to its host."""
    link_bandwidth: float = 0.0
    """Bytes a second that a chip gathers from its neighbours."""
    disk: Assumption | None = None
    """What the disk of a host writes; None: to be measured."""
    topology: str | None = None
    """As the TPU compiler names it."""


#                             chips, hosts, memory, bf16, float32, memory bandwidth, to the host, NVLink
_GPUS = {
    "a100": Accelerator("", "gpu", 1, 1, 80 * 10**9, 312e12, 19.5e12, 2.0e12, 25e9, 300e9, GPU_DISK),
    "h100": Accelerator("", "gpu", 1, 1, 80 * 10**9, 989e12, 67e12, 3.35e12, 50e9, 450e9, GPU_DISK),
    "h200": Accelerator("", "gpu", 1, 1, 141 * 10**9, 989e12, 67e12, 4.8e12, 50e9, 450e9, GPU_DISK),
}


def parse_accelerator(name: str) -> Accelerator:
    """The accelerator of that name; raises UsageError, naming what is known."""
    if name == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return Accelerator(name, "cpu", chips=1, hosts=1, memory_bytes=memory)
    if (match := re.fullmatch(r"([a-z]\d+)x([1248])", name)) and match[1] in _GPUS:
        return replace(_GPUS[match[1]], name=name, chips=int(match[2]))
    try:
        return _tpu(name, parse_topology(name))
    except UsageError as error:
        raise UsageError(
            f"--accelerator {name}: not known. Known are TPUs, by Google's types (v4-32, v5litepod-64, v5p-8, v6e-8) or"
            f" topologies (v5e:8x8), GPUs of one host ({', '.join(f'{gpu}x1' for gpu in _GPUS)}, also x2, x4, x8), and"
            " cpu, which is this machine"
        ) from error


def _tpu(name: str, topology: Topology) -> Accelerator:
    kind = topology.kind
    single = topology.chips <= kind.chips_per_host
    return Accelerator(
        name=name,
        platform="tpu",
        chips=topology.chips,
        hosts=1 if single else topology.chips // _CHIPS_PER_HOST_IN_SLICES,
        memory_bytes=kind.memory_bytes,
        bf16_flops=kind.bf16_flops,
        float32_flops=kind.bf16_flops / _TPU_FLOAT32_PASSES,
        memory_bandwidth=kind.memory_bandwidth,
        host_bandwidth=kind.host_bandwidth,
        link_bandwidth=_TPU_LINK[kind.name],
        disk=TPU_DISK,
        topology=str(topology),
    )
