"""The measurements of Layertap alone: its stages, its memory, its reader, its claims."""

import json
import re
from dataclasses import replace
from pathlib import Path

import commands
import pytest
from fakes.gcs import FakeGcs

from benchmarks import encode_table, measures
from benchmarks.config import ContenderConfig
from benchmarks.workload import Figures
from layertap.demo.tasks import make_tasks, write_tasks


def _tiny(tmp_path: Path, tiny_model: Path) -> ContenderConfig:
    """Return settings whose model exists."""
    (tmp_path / "model-tiny").symlink_to(tiny_model)
    return ContenderConfig(dataset_path="tasks.jsonl", size="tiny", tasks=12, repeats=3, output_dir=str(tmp_path))


def test_memory_is_measured_for_four_times_as_many_tasks_and_held_to_its_bound(
    tmp_path: Path, tiny_model: Path
) -> None:
    config = replace(_tiny(tmp_path, tiny_model), dtypes=("float32",), shard_size_gb=0.002)

    def run(one: ContenderConfig) -> Figures:
        return {"peak_mb": 1000.0 + one.tasks, "tokens": 1000.0 * one.tasks}

    weights = (tiny_model / "model.safetensors").stat().st_size * 2 / 1e6  # stored as bfloat16
    said = measures.memory(config, run)
    assert "peak 1012 MB for 12 tasks (6.1 shards), 1048 MB for 48: 1.04;" in said
    allowed = re.search(r"are (\d+) MB", said)
    assert allowed is not None
    assert float(allowed[1]) == pytest.approx(weights + 3 * 2 + 1073.7, abs=1)


def test_what_a_second_core_brings_is_the_median_of_the_turns() -> None:
    def run(seconds: float) -> Figures:
        figures = dict.fromkeys(("encoded_bytes", "run_bytes"), 4e9) | {"values": 1e9}
        figures |= dict.fromkeys(("encode_seconds", "encode_processor", "run_seconds"), seconds)
        return figures | dict.fromkeys(encode_table.PARTS, 0.5) | {"waited_input": 1.0, "waited_writing": seconds / 2}

    kind = ("safetensors", "bfloat16")
    turns = [{(kind, 1): run(one), (kind, 2): run(two)} for one, two in ((8, 4), (8, 5), (10, 8))]
    row = encode_table.table(turns, [1, 2]).splitlines()[-1]
    ratio, parts = "1.60 (1.25 to 2.00)", " | ".join(["0.50"] * 5)
    speeds = "500 | 800"
    assert row == f"| safetensors bfloat16 | 500 | {speeds} | {ratio} | {speeds} | {ratio} | {parts} | writing 50% |"


@pytest.mark.whole
def test_encoding_is_measured_behind_a_prefix(tmp_path: Path, tiny_model: Path) -> None:
    """The simulated device computes what all prompts begin with, as a run asks it to."""
    _tiny(tmp_path, tiny_model)
    write_tasks(tmp_path / "tasks.jsonl", make_tasks(1))
    flags = ["--contender", "encode", "--size", "tiny", "--layers", "0", "--dataset_path", "tasks.jsonl"]
    environment = {"PYTHONPATH": f"{commands.ROOT / 'src'}:{commands.ROOT}"}
    done = commands.run(["-m", "benchmarks.contenders", *flags, "--output_dir", "."], tmp_path, environment)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["run_bytes"] == figures["run_tokens"] * 64 * 4 > 0


# One in `make test-slow`, every one in `make proof`.
MEASURES = [
    pytest.param("stages", marks=pytest.mark.slow),
    *(
        pytest.param(measure, marks=pytest.mark.proof)
        for measure in ("depth", "sites", "formats", "encode", "memory", "output", "start", "prefix")
    ),
]


@pytest.mark.parametrize("measure", MEASURES)
def test_every_measure_says_a_figure(tmp_path: Path, measure: str) -> None:
    flags = ["--size", "tiny", "--tasks", "4", "--repeats", "1", "--dtypes", "float32", "--measure", measure]
    environment = {"PYTHONPATH": f"{commands.ROOT / 'src'}:{commands.ROOT}"}
    done = commands.run(["-m", "benchmarks", *flags, "--output_dir", "out"], tmp_path, environment)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d\.\d|\d %", done.stdout)
    document = json.loads((tmp_path / "out" / f"{measure}.json").read_text())
    assert "\n".join(document["said"][0]["said"]) == done.stdout.strip()
    assert all(run["figures"]["peak_mb"] > 0 for run in document["runs"])


def test_the_reader_is_measured_beside_plain_reads(tmp_path: Path) -> None:
    flags = ["--gb", "0.004", "--shard_gb", "0.002", "--hidden", "64", "--repeats", "2", "--folder", str(tmp_path)]
    environment = {"PYTHONPATH": f"{commands.ROOT / 'src'}:{commands.ROOT}"}
    done = commands.run(["-m", "benchmarks.reading", *flags], tmp_path, environment)
    assert done.returncode == 0, done.stderr
    rates = json.loads(done.stdout.splitlines()[-1])
    contenders = ("plain", "in_order", "shuffled", "normalised", "runs")
    assert {cache: {name: len(own) for name, own in by.items()} for cache, by in rates.items()} == {
        cache: dict.fromkeys(contenders, 2) for cache in ("disk", "cached")
    }
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow  # it starts a dozen workers
def test_claims_and_a_second_worker_are_measured(tmp_path: Path, gcs: FakeGcs) -> None:
    flags = ["--tasks", "2", "--shards", "2", "--claims", "3", "--repeats", "1", "--layers", "1"]
    environment = {"PYTHONPATH": f"{commands.ROOT / 'src'}:{commands.ROOT}", "TMPDIR": str(tmp_path)}
    places = [str(tmp_path / "claims"), "gs://bucket/claims"]
    done = commands.run(["-m", "benchmarks.fleet", *flags, "--places", *places], tmp_path, environment)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert list(figures["claims"]) == places
    assert all(seconds > 0 for turns in figures["claims"].values() for seconds in turns[0].values())
    assert [sum(turns[0]["shards"]) for turns in figures["scaling"].values()] == [2] * 4
    assert done.stdout.count("tokens/s") == 4
