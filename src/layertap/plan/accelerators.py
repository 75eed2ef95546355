"""Accelerators by name, with the figures that decide their speed; and the other assumptions of a
plan, each with its source. A plan prints the assumptions that it used.

    accelerator type        chips                      topology, as the TPU compiler names it
    v5litepod-N             N (v5e; 16 GB each)        v5e:XxY
    v6e-N                   N (32 GB each)             v6e:XxY
    v4-N, v5p-N             N / 2 (32 GB, 95 GB each)  v4:XxYxZ, v5p:XxYxZ; N counts cores
    a100xN, h100xN, h200xN  N, 1 to 8: SXM modules of one host

Sources: for TPUs cloud.google.com/tpu/docs/v4, v5e, v5p and v6e, and the scaling book (tpus). For
GPUs NVIDIA's data sheets (dense bfloat16 peak, memory, NVLink in one direction, PCIe 4 or 5 x16
minus a fifth). For the cores of hosts Google's machine types (a2-ultragpu 6 per card, a3-highgpu
13, a3-ultragpu 14, ct5lp-hightpu 12 to 14 per chip, other TPUs more). Memory is in decimal GB, as
Google prints it. The compiler allows a little less than the binary figure (15.75 GiB on v5e), so a
step that fits in the decimal figure fits.
"""

import math
import re
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from layertap.errors import UsageError


class Assumption(NamedTuple):
    """A figure that was not measured on the planned machine."""

    what: str
    value: float
    unit: str
    source: str

    def __str__(self) -> str:
        figure = f"{self.value:g} {self.unit}".strip()
        return f"{self.what}: {figure} ({self.source})"


SLOW_SHARE_OF_PEAK = Assumption(
    "matrix products reach, at worst",
    0.2,
    "of the peak",
    "a guess: half of what the scaling book assumes for prefill; small models have small products",
)
FAST_SHARE_OF_PEAK = Assumption(
    "matrix products reach, at best",
    0.5,
    "of the peak",
    "MaxText's published training runs: 39 to 50 % on v6e, 51 % on H100; Layertap on an H100: 31 % at 0.5B, 51 % at 7B",
)
TYPICAL_MEDIAN = Assumption("median prompt", 1110, "tokens", "ARC-AGI-1 training, 8 predictions, Qwen 2.5's tokenizer")
TYPICAL_MEAN = Assumption("mean prompt", 1617, "tokens", "the same 3,328 prompts; lengths assumed log-normal")
TYPICAL_PREFIXES = {
    version: Assumption(
        "every prompt begins with the same",
        tokens,
        "tokens",
        f"{version} in Qwen 2.5's tokenizer; a run computes it once; --tokenizer FOLDER counts yours",
    )
    for version, tokens in (("output-from-examples-v0", 298), ("output-from-examples-v1", 108))
}
UNKNOWN_PREFIX = Assumption(
    "every prompt begins with the same",
    0,
    "tokens",
    "unknown without a tokenizer, so none is left out; --tokenizer FOLDER counts what a run computes once",
)
TYPICAL_TEXT_BYTES = Assumption(
    "a sample's task id, origin and preview",
    600,
    "bytes, in each file",
    "a guess: 200 characters of preview, an augmentation",
)
MEASURING_SECONDS_A_VALUE = Assumption(
    "converting and measuring", 0.5e-9, "s a value, of one core", "benchmarks --measure encode, Zen 4, with numba"
)
GZIP_BYTES_A_SECOND = {
    "float32": Assumption("gzip of float32 that was bfloat16", 300e6, "B/s, one core", "the same"),
    "bfloat16": Assumption("gzip of bfloat16", 290e6, "B/s, one core", "the same"),
    "float16": Assumption("gzip of float16", 290e6, "B/s, one core", "assumed equal to bfloat16"),
    "exact": Assumption("gzip of float32 products", 1068e6, "B/s, one core", "isal level 1, synthetic data"),
}
GZIP_RATIO = {
    "float32": Assumption("gzip divides float32 that was bfloat16 by", 2.10, "", "isal level 2, synthetic data"),
    "bfloat16": Assumption("gzip divides bfloat16 by", 1.27, "", "isal level 2, synthetic data"),
    "float16": Assumption("gzip divides float16 by", 1.1, "", "a guess between bfloat16's and float32's"),
    "exact": Assumption("gzip divides float32 products by", 1.075, "", "isal level 1, synthetic data"),
}
PUTTING_BYTES_A_SECOND = Assumption(
    "one thread writes at most",
    1.7e9,
    "B/s a host",
    "benchmarks --measure encode, Zen 4: a checksum and a copy to the page cache",
)
TPU_DISK = Assumption(
    "a TPU VM's disk writes",
    0.168e9,
    "B/s a host",
    "Google's limits for the 100 GB boot disk, a balanced persistent disk",
)
TPU_DISK_BYTES = Assumption("a TPU VM's disk holds", 100e9, "bytes", "Google's default boot disk")
GPU_DISK = Assumption("the disk writes", 2e9, "B/s a host", "a guess: one NVMe drive")
NETWORK = Assumption("uploads", 0.5e9, "B/s a host", "a guess: 4 streams to a bucket of the region")

# On TPU, a float32 product takes six bfloat16 products (jax.lax.Precision.HIGHEST).
_TPU_FLOAT32_PASSES = 6
# A slice of more than 8 v5e or v6e chips consists of VMs with 4 chips.
_CHIPS_PER_HOST_IN_SLICES = 4


@dataclass(frozen=True)
class Accelerator:
    """One unit that you rent; rates are per chip unless stated otherwise."""

    name: str
    platform: Literal["tpu", "gpu"]
    chips: int
    hosts: int
    memory_bytes: int
    bf16_flops: float
    """Peak."""
    float32_flops: float
    memory_bandwidth: float
    """Bytes per second between the chip and its own memory."""
    host_bandwidth: float
    """Bytes per second from the chip to its host."""
    link_bandwidth: float
    """Bytes per second that a chip gathers from its neighbours; on TPU both ways along one axis."""
    disk: Assumption
    """What the disk of a host writes."""
    cores_per_chip: int
    """Cores of its host (two virtual ones each), shared out among the chips there."""
    topology: str | None = None
    """The TPU compiler's name of the topology."""


# Memory; bfloat16 and float32 peaks; rates of memory, to the host, and of NVLink; at the end cores.
_GPUS = {
    "a100": Accelerator("", "gpu", 1, 1, 80 * 10**9, 312e12, 19.5e12, 2.0e12, 25e9, 300e9, GPU_DISK, 6),
    "h100": Accelerator("", "gpu", 1, 1, 80 * 10**9, 989e12, 67e12, 3.35e12, 50e9, 450e9, GPU_DISK, 13),
    "h200": Accelerator("", "gpu", 1, 1, 141 * 10**9, 989e12, 67e12, 4.8e12, 50e9, 450e9, GPU_DISK, 14),
}


@dataclass(frozen=True)
class _TpuKind:
    memory_bytes: int
    bf16_flops: float
    memory_bandwidth: float
    host_bandwidth: float
    link_bandwidth: float
    chips_per_host: int
    cores_in_name: int
    """How much one chip counts in the number of the accelerator type."""
    dimensions: int


_TPUS = {
    "v4": _TpuKind(32 * 10**9, 275e12, 1.2e12, 15e9, 9e10, 4, 2, 3),
    "v5e": _TpuKind(16 * 10**9, 197e12, 0.81e12, 15e9, 9e10, 8, 1, 2),
    "v5p": _TpuKind(95 * 10**9, 459e12, 2.8e12, 15e9, 1.8e11, 4, 2, 3),
    "v6e": _TpuKind(32 * 10**9, 918e12, 1.6e12, 32e9, 1.8e11, 8, 1, 2),
}


def parse_accelerator(name: str) -> Accelerator:
    """Return the accelerator with that name; raises UsageError, which lists known names."""
    if (match := re.fullmatch(r"([a-z]\d+)x([1248])", name)) and match[1] in _GPUS:
        return replace(_GPUS[match[1]], name=name, chips=int(match[2]))
    if match := re.fullmatch(r"(v4|v5e|v5p|v6e):(\d+(?:x\d+){1,2})", name):
        grid = tuple(int(side) for side in match[2].split("x"))
        if len(grid) == _TPUS[match[1]].dimensions and 0 not in grid:
            return _tpu(name, match[1], grid)
    if match := re.fullmatch(r"(v4|v5litepod|v5p|v6e)-(\d+)", name):
        generation = "v5e" if match[1] == "v5litepod" else match[1]
        chips, rest = divmod(int(match[2]), _TPUS[generation].cores_in_name)
        if chips and not rest and not chips & (chips - 1):
            return _tpu(name, generation, _even_grid(chips, _TPUS[generation].dimensions))
    raise UsageError(
        f"--accelerator {name}: not known. Give a TPU, by Google's types (v4-32, v5litepod-64, v5p-8, v6e-8) or"
        f" topologies (v5e:8x8), or GPUs of one host ({', '.join(f'{gpu}x1' for gpu in _GPUS)}, also x2, x4, x8)."
        " With cpu, or none, a plan has no speed; measure it with `layertap extract --max_tasks 10`"
    )


def _tpu(name: str, generation: str, grid: tuple[int, ...]) -> Accelerator:
    kind, chips = _TPUS[generation], math.prod(grid)
    return Accelerator(
        name=name,
        platform="tpu",
        chips=chips,
        hosts=1 if chips <= kind.chips_per_host else chips // _CHIPS_PER_HOST_IN_SLICES,
        memory_bytes=kind.memory_bytes,
        bf16_flops=kind.bf16_flops,
        float32_flops=kind.bf16_flops / _TPU_FLOAT32_PASSES,
        memory_bandwidth=kind.memory_bandwidth,
        host_bandwidth=kind.host_bandwidth,
        link_bandwidth=kind.link_bandwidth,
        disk=TPU_DISK,
        cores_per_chip=12,
        topology=f"{generation}:{'x'.join(map(str, grid))}",
    )


def _even_grid(chips: int, dimensions: int) -> tuple[int, ...]:
    """Return the most even grid of powers of two, in the cloud's order: 8 is 2x4, 4 is 2x2x1."""
    powers = chips.bit_length() - 1
    sides = [powers // dimensions + (position >= dimensions - powers % dimensions) for position in range(dimensions)]
    return tuple(2**side for side in sorted(sides, key=lambda side: (side == 0, side)))
