"""`make mutants`: put small faults into the modules that decide the bytes, one at a time, and see
whether tests notice.

make mutants MUTANTS="--modules shards.writer --out found.jsonl"
"""

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks.mutants.drawing import LIST, TESTS, draw, read_list, source_of, write_list
from benchmarks.mutants.making import Mutant, make_mutants
from benchmarks.mutants.running import ModuleTests, preload

WANTED = 0.85


@dataclass(frozen=True)
class MutantsConfig:
    """Mutate modules and run their tests."""

    root: Path = Path(__file__).resolve().parents[2]
    """The checkout whose modules and tests are run; another one, to compare with."""
    modules: tuple[str, ...] = tuple(TESTS)
    """Which modules, as room.name."""
    list: Path = LIST
    """The mutants that were drawn, one a line."""
    out: Path | None = None
    """Write each mutant and its outcome here, one a line."""
    draw: bool = False
    """Draw a new list instead of running it."""
    each: int = 50
    """How many of a module are drawn."""
    seed: int = 14
    """Decides which are drawn."""

    def __post_init__(self) -> None:
        """Refuse modules that have no tests listed."""
        if unknown := set(self.modules) - set(TESTS):
            raise ValueError(f"no tests are listed for {', '.join(sorted(unknown))} in benchmarks/mutants/drawing.py")


def main() -> None:
    """Draw, or run what was drawn; the status is 1 where too few are found."""
    config = tyro.cli(MutantsConfig, use_underscores=True)
    if config.draw:
        write_list(draw(config.root, config.modules, config.each, config.seed), config.list)
        return
    preload(config.root)
    drawn = read_list(config.list)
    tally: dict[str, Counter[str]] = {}
    out = config.out.open("w") if config.out else None
    for module in config.modules:
        tally[module] = Counter()
        for mutant, outcome in run_module(config.root, module, [mutant for mutant in drawn if mutant.module == module]):
            tally[module][outcome["outcome"]] += 1
            if out:
                print(json.dumps({**mutant.to_json(), **outcome}, ensure_ascii=False), file=out, flush=True)
    if out:
        out.close()
    sys.exit(0 if report(tally) >= WANTED else 1)


def run_module(root: Path, module: str, drawn: list[Mutant]) -> Iterator[tuple[Mutant, dict[str, Any]]]:
    """Run the tests of a module on each of its mutants; each with what came of it."""
    source = source_of(root, module)
    made = make_mutants(module, source.read_text())
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tests = ModuleTests(root, source, TESTS[module], Path(folder))
        usual = tests.usual()
        print(f"{module}: {len(usual.durations)} tests, {usual.processor_s:.1f} s of processor time", flush=True)
        if tests.outcome("raise SystemError\n", usual)[0] != "found":
            raise RuntimeError(f"{module}: tests pass although the module cannot be imported: another one was run")
        for mutant in drawn:
            if mutant not in made:
                yield mutant, {"outcome": "gone"}
                continue
            outcome, run = tests.outcome(made[mutant], usual)
            if outcome == "survived":
                print(f"survived: {mutant}", flush=True)
            yield mutant, {"outcome": outcome, "by": tests.last_failure, "processor_s": round(run.processor_s, 2)}


def report(tally: dict[str, Counter[str]]) -> float:
    """Print the scores; returns the share of all that were found."""
    print(f"\n{'module':<18}{'run':>6}{'found':>7}{'of these, time-outs':>21}{'survived':>10}{'gone':>6}{'score':>9}")
    rows = [*tally.items(), ("all", sum(tally.values(), Counter[str]()))]
    for module, counts in rows:
        found = counts["found"] + counts["timeout"]
        run = found + counts["survived"]
        print(
            f"{module:<18}{run:>6}{found:>7}{counts['timeout']:>21}{counts['survived']:>10}{counts['gone']:>6}"
            f"{found / run if run else 0:>9.1%}"
        )
    return found / run if run else 0.0


if __name__ == "__main__":
    main()
