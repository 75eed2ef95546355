"""Which mutants are run: so many of each module, drawn by seed once, and kept in `drawn.jsonl` from
then on.

The list is kept so that you can compare tests before and after a change: both sides get the same
faults. A mutant whose lines have changed since is counted as gone. `--draw` draws a new list.
"""

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path

from benchmarks.mutants.making import Mutant, make_mutants

LIST = Path(__file__).with_name("drawn.jsonl")

TESTS: Mapping[str, tuple[str, ...]] = {
    "pipeline.packing": ("pipeline/test_packing.py", "pipeline/test_windows.py"),
    "pipeline.windows": ("pipeline/test_windows.py",),
    "shards.writer": ("shards/test_writer.py",),
    "shards.encode": ("shards/test_encode.py", "shards/test_writer.py", "shards/test_loops.py"),
    "shards.rounding": ("shards/test_encode.py", "shards/test_loops.py"),
    "shards.manifest": ("shards/test_manifest.py", "shards/test_writer.py"),
    "shards.manifest_files": ("shards/test_manifest.py", "shards/test_version_1.py"),
    "fleet.claims": ("fleet/test_claims.py",),
    "prompts.augment": ("prompts/test_augment.py", "prompts/test_samples.py"),
    "prompts.grids": ("prompts/test_grids.py",),
}
"""The modules that are mutated, and the tests that run each, the quickest first."""


def source_of(root: Path, module: str) -> Path:
    """The file of `room.name` in a checkout."""
    return root / "src" / "layertap" / Path(*module.split(".")).with_suffix(".py")


def draw(root: Path, modules: Iterable[str], each: int, seed: int) -> list[Mutant]:
    """Up to `each` mutants of each of these modules."""
    chance, drawn = random.Random(seed), []
    for module in modules:
        made = list(make_mutants(module, source_of(root, module).read_text()))
        drawn += sorted(chance.sample(made, min(each, len(made))))
    return drawn


def write_list(mutants: Iterable[Mutant], path: Path = LIST) -> None:
    """One mutant a line."""
    path.write_text("".join(json.dumps(mutant.to_json(), ensure_ascii=False) + "\n" for mutant in mutants))


def read_list(path: Path = LIST) -> list[Mutant]:
    """What `write_list` wrote."""
    return [Mutant.from_json(json.loads(line)) for line in path.read_text().splitlines()]
