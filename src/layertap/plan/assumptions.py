"""What a plan takes for granted, each figure with its source; a plan prints those that it used."""

from typing import NamedTuple


class Assumption(NamedTuple):
    """A figure that was not measured on the machine that is planned for."""

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
    "MaxText's published training runs: 39 to 50 % on v6e, 51 % on H100; nothing of ours ran on either yet",
)
TYPICAL_MEDIAN = Assumption("median prompt", 1110, "tokens", "ARC-AGI-1 training, 8 predictions, Qwen 2.5's tokenizer")
TYPICAL_MEAN = Assumption("mean prompt", 1617, "tokens", "the same 3,328 prompts; lengths taken as log-normal")
TYPICAL_TEXT_BYTES = Assumption(
    "a sample's task id, origin and preview",
    600,
    "bytes, in each file",
    "a guess: 200 characters of preview, an augmentation",
)
STATISTICS_SECONDS_A_VALUE = Assumption(
    "statistics and flags", 2e-9, "s a value, of one core", "shards/statistics.py, measured on two cores"
)
GZIP_BYTES_A_SECOND = {
    "float32": Assumption(
        "gzip of float32 that was bfloat16", 388e6, "B/s, one thread", "isal level 2, synthetic data"
    ),
    "bfloat16": Assumption("gzip of bfloat16", 511e6, "B/s, one thread", "isal level 2, synthetic data"),
    "float16": Assumption("gzip of float16", 511e6, "B/s, one thread", "taken to be as bfloat16"),
    "exact": Assumption("gzip of float32 products", 1068e6, "B/s, one thread", "isal level 1, synthetic data"),
}
GZIP_RATIO = {
    "float32": Assumption("gzip divides float32 that was bfloat16 by", 2.10, "", "isal level 2, synthetic data"),
    "bfloat16": Assumption("gzip divides bfloat16 by", 1.27, "", "isal level 2, synthetic data"),
    "float16": Assumption("gzip divides float16 by", 1.1, "", "a guess between bfloat16's and float32's"),
    "exact": Assumption("gzip divides float32 products by", 1.075, "", "isal level 1, synthetic data"),
}
PLAIN_BYTES_A_SECOND = Assumption(
    "writing without gzip", 1.2e9, "B/s, one thread", "a guess: CRC-32C and a copy to the page cache"
)
TPU_DISK = Assumption(
    "a TPU VM's disk writes",
    0.168e9,
    "B/s a host",
    "Google's limits for the 100 GB boot disk, a balanced persistent disk",
)
TPU_DISK_BYTES = Assumption("a TPU VM's disk holds", 100e9, "bytes", "the boot disk that Google makes, unless told")
GPU_DISK = Assumption("the disk writes", 2e9, "B/s a host", "a guess: one NVMe drive")
NETWORK = Assumption("uploads", 0.5e9, "B/s a host", "a guess: 4 streams to a bucket of the region")
TPU_HOST_THREADS = Assumption("threads for statistics", 16, "a host", "what Layertap uses at most; TPU VMs have more")
MEASURED_SPREAD = Assumption("a run here takes, of what was measured", 1.3, "times more or less", "what we aim at")
