"""The TPUs that Google Cloud rents out, by the names it gives them.

    accelerator type    chips                       topology, as the compiler names it
    v5litepod-N         N (v5e; 16 GB each)         v5e:XxY
    v6e-N               N (32 GB each)              v6e:XxY
    v4-N, v5p-N         N / 2 (32 GB, 95 GB each)   v4:XxYxZ, v5p:XxYxZ; N counts the two cores of a chip

Sources: cloud.google.com/tpu/docs/v4, v5e, v5p and v6e. Memory is in decimal GB as printed there; the compiler grants a
little less than the binary figure (15.75 GiB on v5e), so a step that fits in the decimal one fits.
"""

import math
import re
from dataclasses import dataclass

from layertap.errors import UsageError


@dataclass(frozen=True)
class TpuKind:
    """One generation: memory, peak and link speed of a chip."""

    name: str
    memory_bytes: int
    bf16_flops: float
    """Peak of matrix products, operations a second."""
    memory_bandwidth: float
    """Bytes a second between the chip and its own memory."""
    host_bandwidth: float
    """Bytes a second from one chip to its host (scaling-book, tpus)."""
    chips_per_host: int
    cores_in_name: int
    """By how much the number in the accelerator type counts a chip."""
    dimensions: int


KINDS = {
    "v4": TpuKind("v4", 32 * 10**9, 275e12, 1.2e12, 15e9, 4, 2, 3),
    "v5e": TpuKind("v5e", 16 * 10**9, 197e12, 0.81e12, 15e9, 8, 1, 2),
    "v5p": TpuKind("v5p", 95 * 10**9, 459e12, 2.8e12, 15e9, 4, 2, 3),
    "v6e": TpuKind("v6e", 32 * 10**9, 918e12, 1.6e12, 32e9, 8, 1, 2),
}


@dataclass(frozen=True)
class Topology:
    """Chips of one kind in a grid, such as `v5e:8x8`."""

    kind: TpuKind
    grid: tuple[int, ...]

    @property
    def chips(self) -> int:
        """How many there are."""
        return math.prod(self.grid)

    def __str__(self) -> str:
        return f"{self.kind.name}:{'x'.join(map(str, self.grid))}"


def parse_topology(text: str) -> Topology:
    """`v5e:8x8`, or an accelerator type such as `v5litepod-64` or `v4-128`; raises UsageError."""
    if match := re.fullmatch(r"(v4|v5e|v5p|v6e):(\d+(?:x\d+){1,2})", text):
        topology = Topology(KINDS[match[1]], tuple(map(int, match[2].split("x"))))
        if len(topology.grid) == topology.kind.dimensions and topology.chips:
            return topology
    elif match := re.fullmatch(r"(v4|v5litepod|v5p|v6e)-(\d+)", text):
        kind = KINDS["v5e" if match[1] == "v5litepod" else match[1]]
        chips, rest = divmod(int(match[2]), kind.cores_in_name)
        if chips and not rest and not chips & (chips - 1):
            return Topology(kind, _grid(chips, kind.dimensions))
    raise UsageError(
        f"{text}: not a TPU; give a type such as v5litepod-64, v6e-8 or v4-128, or a topology such as v5e:8x8"
    )


def _grid(chips: int, dimensions: int) -> tuple[int, ...]:
    """The most even grid of powers of two, in the cloud's own order: 8 -> 2x4 or 2x2x2, 4 -> 2x2x1, 32 -> 2x4x4."""
    powers = chips.bit_length() - 1
    sides = [powers // dimensions + (position >= dimensions - powers % dimensions) for position in range(dimensions)]
    return tuple(2**side for side in sorted(sides, key=lambda side: (side == 0, side)))
