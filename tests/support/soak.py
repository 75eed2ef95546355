"""`make soak`: kill runs a few hundred times, compare every byte in the end, print the tally.

make soak SOAK="--kills 1000 --seed 7"
"""

import argparse
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

from clouds import BUCKET
from fakes.gcs import FakeGcs
from kills import Machine, Scenario, kill_until_done

from layertap.demo.checkpoint import write_checkpoint
from layertap.demo.tasks import make_tasks, write_tasks

SCENARIOS = (
    Scenario("pickle", bucket=True),
    Scenario("safetensors", bucket=True, delete=True, storm=0.05),
    Scenario("pickle", bucket=False),
    Scenario("pickle", direct=True, storm=0.05),
    Scenario("safetensors", bucket=True),
    Scenario("safetensors", direct=True),
    Scenario("pickle", bucket=True, delete=True, storm=0.05),
    Scenario("safetensors", bucket=False),
)
MOST_KILLS_A_RUN = 12


def soak(folder: Path, kills: int, seed: int, say: Callable[[str], object], tasks: int = 24) -> Counter[str]:
    """Kill `kills` times in all. Return how and where the kills fell."""
    chance, tally, killed = random.Random(seed), Counter[str](), 0
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "xla"))
    write_checkpoint(folder / "model", "tiny")
    write_tasks(folder / "tasks.jsonl", make_tasks(tasks, seed=1))
    undisturbed: dict[Scenario, Machine] = {}
    for number, scenario in enumerate(cycle(SCENARIOS)):
        if killed >= kills:
            return tally
        if scenario not in undisturbed:
            with FakeGcs(BUCKET) as gcs:
                machine = Machine(folder / f"whole{number}", folder / "model", folder / "tasks.jsonl", scenario, gcs)
                machine.run_to_the_end()
                undisturbed[scenario] = machine
        with FakeGcs(BUCKET) as gcs:
            gcs.faults.storm = scenario.storm
            machine = Machine(folder / f"run{number}", folder / "model", folder / "tasks.jsonl", scenario, gcs)
            took = kill_until_done(machine, undisturbed[scenario], min(MOST_KILLS_A_RUN, kills - killed), chance, tally)
        killed += took
        tally["runs that ended with the same bytes"] += 1
        say(f"{scenario}: {took} kills, then the same bytes as an undisturbed run ({killed} of {kills})")
    return tally


def main() -> None:
    """Read the flags, soak, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="layertap-soak-") as folder:
        tally = soak(Path(folder), flags.kills, flags.seed, lambda line: print(line, flush=True))
    print(f"\n{flags.kills} kills in {(time.monotonic() - begun) / 60:.0f} minutes, seed {flags.seed}:")
    for what, count in sorted(tally.items(), key=lambda item: (item[0].startswith("left"), -item[1])):
        print(f"{count:6}  {what}")


if __name__ == "__main__":
    sys.exit(main())
