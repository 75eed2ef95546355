"""One whole run of `layertap extract` in a process of its own, with its bottleneck in words.

The figures are those of the contender `layertap` (benchmarks/contenders.py). Of `--repeats` the
last one counts: those before it fill the compilation cache. `--cores N` leaves N
cores to the whole process, as `taskset` does: threads that encode, and the one that feeds the card.
That has to happen before JAX is loaded, whose threads would not heed it later.
"""

import json
import os
import resource

import tyro

from benchmarks.config import ContenderConfig
from benchmarks.contenders import measured_run
from benchmarks.device import check
from layertap.pipeline.bottleneck import describe_bottleneck
from layertap.shards.threads import usable_cores


def main() -> None:
    """Run, and print a line of JSON."""
    config = tyro.cli(ContenderConfig, use_underscores=True)
    if config.cores is not None:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: config.cores])
    check(config.device, ("jax",))
    for _ in range(max(config.repeats - 1, 0)):
        measured_run(config)
    summary, figures = measured_run(config)
    waited, working = summary.waited["writing"], max(figures["seconds"], 1e-9)
    found = {
        **figures,
        "cores": usable_cores(),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
        "threads": {work: seconds for work, seconds in summary.writing.items() if seconds},
        "bottleneck": describe_bottleneck(summary.manifest, summary.writing, waited, working),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
