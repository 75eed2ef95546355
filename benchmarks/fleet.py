"""`python -m benchmarks.fleet`: what a claim costs in seconds, and what a second worker on this
machine brings.

    claims    look (two listings), take, beat and commit (with done-manifest and deletion), beside
              a plain write of the same bytes, at each of `--places`
    scaling   one worker and two on the same dataset, each with every core and with one of its own

`STORAGE_EMULATOR_HOST` gives the address of a bucket on loopback.

Contenders take turns, each at the head of one; medians count. Workers with a core each show what
the protocol costs; with every core, what one process leaves for another. `share` says what workers
waited for, of their own seconds.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import tyro

from layertap.config.fleet import CreateShardsConfig
from layertap.demo.checkpoint import write_checkpoint
from layertap.demo.tasks import make_tasks, write_tasks
from layertap.fleet.claims import CLAIMS, DONE, Claim, encode_claim, take
from layertap.fleet.sharded import create_shards, shard_name
from layertap.objects import open_store
from layertap.objects.base import ObjectStore

T = TypeVar("T")

_SAID = re.compile(r"committed (\d+) dataset shards, .* tokens in ([\d.]+) s")
_CONTENDERS = {  # how many workers, and whether each has a core of its own
    "1 worker": (1, False),
    "2 workers": (2, False),
    "1 worker, 1 core": (1, True),
    "2 workers, 1 core each": (2, True),
}
# XLA makes a thread for each core that it may use, so the cores are chosen before Python starts.
_ON_CORES = """
import os, sys
os.sched_setaffinity(0, map(int, sys.argv[1].split(",")))
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


@dataclass(frozen=True)
class FleetConfig:
    """Measure claims, and two workers beside one."""

    size: str = "tiny"
    """The shape of the checkpoint that is made on the spot."""

    layers: int | None = None
    """This many layers instead of the size's own number."""

    tasks: int = 48
    """How many tasks are made."""

    shards: int = 8
    """Into how many dataset shards they are cut."""

    claims: int = 50
    """How many shards are claimed and committed at each place in a turn."""

    places: tuple[str, ...] = ()
    """Folders and gs://bucket/path where claims are measured, below which a folder is made; none: a
    temporary one."""

    repeats: int = 3
    """How many turns."""


def main() -> None:
    """Measure; print tables and a line of JSON."""
    config = tyro.cli(FleetConfig, use_underscores=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        places = config.places or (str(folder / "claims"),)
        claims = {place: [_claims(place, config.claims) for _ in range(config.repeats)] for place in places}
        scaling = _scaling(folder, config)
    for place, turns in claims.items():
        _print_claims(place, turns)
    _print_scaling(scaling)
    print(json.dumps({"claims": claims, "scaling": scaling}))


def _claims(place: str, count: int) -> dict[str, float]:
    """Return the median seconds of each call, and of a plain write."""
    seconds: dict[str, list[float]] = {name: [] for name in ("plain", "look", "take", "beat", "commit")}
    with closing(open_store(f"{place}/{uuid4().hex}")) as store:
        for number in range(count):
            _claim(store, number, seconds)
    return {name: statistics.median(own) for name, own in seconds.items()}


def _claim(store: ObjectStore, number: int, seconds: dict[str, list[float]]) -> None:
    shard = shard_name(number)
    claim = Claim(worker=0, host="here", nonce=uuid4().hex, attempt="", seconds=120.0)
    _timed(seconds["plain"], lambda: store.create(f"plain/{number}", encode_claim(claim)))
    _timed(seconds["look"], lambda: [list(store.list(prefix)) for prefix in (CLAIMS, DONE)])
    lease = _timed(seconds["take"], lambda: take(store, shard, claim))
    assert lease is not None
    _timed(seconds["beat"], lambda: lease.beat({}))
    _timed(seconds["commit"], lambda: lease.commit({"shard": shard}))


def _timed(seconds: list[float], call: Callable[[], T]) -> T:
    begun = time.perf_counter()
    result = call()
    seconds.append(time.perf_counter() - begun)
    return result


def _scaling(folder: Path, config: FleetConfig) -> dict[str, list[dict[str, Any]]]:
    write_checkpoint(folder / "model", config.size, layers=config.layers)
    write_tasks(folder / "tasks.jsonl", make_tasks(config.tasks))
    names = list(_CONTENDERS)
    for name in names:  # compile, so that all find their programs in the cache
        _contend(folder, config, *_CONTENDERS[name])
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for turn in range(config.repeats):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(_contend(folder, config, *_CONTENDERS[name]))
    return found


def _contend(folder: Path, config: FleetConfig, workers: int, alone: bool) -> dict[str, Any]:
    """Extract one dataset to its end.

    The speed counts from the first claim to the last commit, with loading.
    """
    place = folder / uuid4().hex
    tasks, dataset = str(folder / "tasks.jsonl"), str(place / "dataset")
    create_shards(CreateShardsConfig(dataset_path=tasks, output=dataset, num_shards=config.shards))
    cores = sorted(os.sched_getaffinity(0))
    started = [
        _start(folder, place, number, [cores[number % len(cores)]] if alone else cores) for number in range(workers)
    ]
    said = [_SAID.search(process.communicate()[0]) for process in started]
    assert all(process.returncode == 0 for process in started)
    matches = [match for match in said if match is not None]
    return {
        "tokens_per_second": _speed(dataset),
        "shards": [int(match[1]) for match in matches],
        "share": _share(place, sum(float(match[2]) for match in matches)),
    }


def _speed(dataset: str) -> float:
    """Return the tokens a second of all workers together, from the done-manifests.

    Workers that start late or end early count as idle.
    """
    with closing(open_store(dataset)) as store:
        found = [store.read(info.name) for info in store.list(DONE)]
    done = [(json.loads(one.data), one.updated) for one in found if one is not None]
    span = max(ended for _, ended in done) - min(ended - manifest["seconds"] for manifest, ended in done)
    return float(sum(manifest["tokens"] for manifest, _ in done) / span)


def _start(folder: Path, place: Path, number: int, cores: Sequence[int]) -> "subprocess.Popen[str]":
    flags = ["--sharded_dataset_dir", str(place / "dataset"), "--worker_id", str(number)]
    flags += ["--model_path", str(folder / "model"), "--output_dir", str(place / "out")]
    flags += ["--checkpoint_dir", str(place / "checkpoints"), "--lease_seconds", "4"]
    command = [sys.executable, "-c", _ON_CORES, ",".join(map(str, cores)), "-m", "layertap", "extract", *flags]
    environment = {"JAX_PLATFORMS": "cpu"} | os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache")}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def _share(place: Path, seconds: float) -> dict[str, float]:
    waited: Counter[str] = Counter()
    for path in place.rglob("metrics.jsonl"):
        waited.update(json.loads(path.read_text().splitlines()[-1])["waited_seconds"])
    rest = max(0.0, seconds - sum(waited.values()))
    return {name: round(own / seconds, 3) for name, own in [*waited.most_common(), ("claims and the rest", rest)]}


def _print_claims(place: str, turns: list[dict[str, float]]) -> None:
    medians = {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}
    whole = sum(medians[name] for name in ("look", "take", "commit"))
    print(f"{place}: a shard costs {whole * 1e3:.1f} ms, {whole / medians['plain']:.1f} plain writes")
    print("  " + ", ".join(f"{name} {own * 1e3:.2f} ms" for name, own in medians.items()))


def _print_scaling(found: dict[str, list[dict[str, Any]]]) -> None:
    rates = {name: statistics.median(turn["tokens_per_second"] for turn in turns) for name, turns in found.items()}
    for name, turns in found.items():
        base = rates["1 worker, 1 core" if "core" in name else "1 worker"]
        share = ", ".join(f"{stage} {own:.0%}" for stage, own in turns[-1]["share"].items() if own >= 0.01)
        print(f"{name:>24} {rates[name]:8.0f} tokens/s {rates[name] / base:5.2f}  {share}")


if __name__ == "__main__":
    main()
