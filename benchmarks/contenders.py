"""One contender, one run, in a process of its own; prints what it measured as one line of JSON.

A process for each run keeps threads, caches and memory of one library away from the other. Loading
is not counted for any of them; for Layertap everything else is, from reading tasks to the last
committed shard. That includes compiling: the first turn pays for the shapes that the persistent
cache does not hold yet, so take three turns or more and let the median leave it out.

    padded   transformers as most scripts use it, and
    best     transformers at its best: `baselines`
    layertap `layertap extract` itself
    forward  the same, but nothing is written, as transformers writes nothing
    ceiling  `ceiling`: the largest rate of a matrix product and of writing to this disk
    stages   Layertap's run without writing, and then the writing of the same shards alone
    stream   batches from a stream, into a trainer that does nothing: `trainers`
    saelens  the same from SAELens' own store
    encode   what encoding costs, and the whole pipeline with a simulated device: `encoding`
    formats  MB of float32 activations a second, for each format and the standard library's gzip
"""

import json
import resource
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from benchmarks.baselines import best, padded
from benchmarks.ceiling import ceiling
from benchmarks.config import Contender, ContenderConfig
from benchmarks.device import Library, check
from benchmarks.encoding import encoding
from benchmarks.trainers import saelens, stream
from benchmarks.workload import Figures, extraction, run_figures
from benchmarks.writing import formats, forward, stages

if TYPE_CHECKING:  # it brings JAX
    from layertap.pipeline.progress import RunSummary


def main() -> None:
    """Run the contender that the command line names."""
    config = tyro.cli(ContenderConfig, use_underscores=True)
    run, libraries = CONTENDERS[config.contender]
    check(config.device, libraries)
    figures = run(config)
    print(json.dumps({**figures, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6}))


def layertap(config: ContenderConfig) -> Figures:
    """The whole run."""
    return measured_run(config)[1]


def measured_run(config: ContenderConfig) -> "tuple[RunSummary, Figures]":
    """The whole run's own summary, and its figures; what it wrote is removed."""
    from layertap.pipeline.run import extract

    run = extraction(config)
    begun = time.perf_counter(), time.process_time()
    try:
        summary = extract(run)
        spent = {"whole_seconds": time.perf_counter() - begun[0], "processor_seconds": time.process_time() - begun[1]}
        written = sum(path.stat().st_size for path in Path(run.output_dir).rglob("*") if path.is_file())
    finally:
        shutil.rmtree(run.output_dir, ignore_errors=True)
    return summary, run_figures(summary) | spent | {"written_mb": written / 1e6}


CONTENDERS: Mapping[Contender, tuple[Callable[[ContenderConfig], Figures], tuple[Library, ...]]] = {
    "padded": (padded, ("torch",)),
    "best": (best, ("torch",)),
    "layertap": (layertap, ("jax",)),
    "forward": (forward, ("jax",)),
    "ceiling": (ceiling, ("torch", "jax")),
    "stages": (stages, ("jax",)),
    "formats": (formats, ()),
    "encode": (encoding, ("jax",)),
    "stream": (stream, ("jax", "torch")),
    "saelens": (saelens, ("torch",)),
}
"""Each with the libraries that it computes with."""


if __name__ == "__main__":
    main()
