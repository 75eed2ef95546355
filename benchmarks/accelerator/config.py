"""What is asked of a run on an accelerator, and of the process of one of its parts."""

from dataclasses import dataclass
from typing import Literal

from benchmarks.config import Device, Dtype

Part = Literal[
    "kernel", "prepare", "reference", "parity", "ceiling", "layertap", "transformers", "command", "stream", "time"
]


@dataclass(frozen=True)
class AcceleratorConfig:
    """Measure kernel, parity, speed, whole runs to disk and a trainer fed by a stream on one card,
    the most important first, without a network.
    """

    out: str
    """Where results.jsonl, report.md and log.txt go; an earlier run's are replaced."""

    minutes: float = 12.5
    """When the last part must have ended; with fewer, parts leave out their last cases."""

    platform: Device = "gpu"
    """gpu: one NVIDIA card. cpu: the same code on tiny models, to find mistakes before a card is
    lent."""

    parts: tuple[Part, ...] = ()
    """Which to run, in the usual order; none stand for all."""

    real_model: str | None = None
    """A Qwen2 checkpoint with trained weights, for parity beside the random ones; None: left
    out."""

    work: str | None = None
    """Where checkpoints and shards go, removed at the end; None: /dev/shm, where it
    has 45 GB free, and otherwise the usual place of temporary files."""

    loop: tuple[Dtype, ...] = ()
    """Compute dtypes whose attention is XLA's own loop, not the kernel; a dtype in which the kernel
    fails joins them by itself."""

    prefix: Literal["shared", "whole"] = "shared"
    """Whether whole runs compute once what all prompts begin with; `whole` by itself, where the
    kernel fails behind a prefix."""

    def __post_init__(self) -> None:
        """Refuse a run that ends before it begins."""
        if self.minutes <= 0:
            raise SystemExit(f"--minutes must be more than 0, not {self.minutes:g}")


@dataclass(frozen=True)
class PartConfig(AcceleratorConfig):
    """One process of one part."""

    part: Part = "kernel"
    """Which."""

    skip: tuple[str, ...] = ()
    """Cases that an earlier process of this part has begun."""


@dataclass(frozen=True)
class Limits:
    """How long a part may take of the usual minutes, and one of its cases at most."""

    seconds: float
    case_seconds: float


PARTS: dict[Part, Limits] = {
    "kernel": Limits(150, 40),
    "prepare": Limits(25, 30),
    "reference": Limits(30, 30),
    "parity": Limits(50, 40),
    "ceiling": Limits(15, 15),
    "layertap": Limits(100, 60),
    "transformers": Limits(70, 40),
    "command": Limits(200, 90),
    "stream": Limits(60, 40),
    "time": Limits(50, 30),
}
"""In this order; together they are the usual minutes. From two runs on an H100, which left out some
cases; the stream's are a guess."""

TITLES: dict[Part, str] = {
    "kernel": "The kernel against the dense reference",
    "prepare": "Checkpoints and tasks",
    "reference": "What transformers computes",
    "parity": "Parity with transformers: relative errors against float64, token by token",
    "ceiling": "The largest rate of a matrix product",
    "layertap": "Forward pass, Layertap",
    "transformers": "Forward pass, transformers",
    "command": "Whole runs, to the work folder",
    "stream": "An autoencoder that trains from a stream, and from stored shards",
    "time": "Where the time of one step goes",
}
