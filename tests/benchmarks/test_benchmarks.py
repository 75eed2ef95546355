"""The benchmark runs, and its arithmetic is right."""

import json
import re
from pathlib import Path

import commands
import pytest
from fakes.gcs import FakeGcs

from benchmarks import report
from layertap.model.config import published_config


def test_gflop_is_that_of_products_and_causal_attention() -> None:
    config = published_config("0.5b")
    per_token = 2 * (896 * (896 + 2 * 128) + 896 * 896 + 3 * 896 * 4864)
    pairs = 10 * 11 / 2
    assert report.model_gflop(config, 24, [10]) == pytest.approx(24 * (10 * per_token + 4 * 896 * pairs) / 1e9)


def test_the_table_compares_medians() -> None:
    def runs(*rates: float) -> list[dict[str, float]]:
        return [{"tokens": rate, "seconds": 1.0} for rate in rates]

    ceiling = [{"gflops": 1000.0}]
    text = report.table(
        "float32", {"padded": runs(10), "best": runs(20, 30, 90), "layertap": runs(60), "ceiling": ceiling}, 0.5
    )
    assert "| 10 | 6.00 | 0% |" in text.replace("1%", "0%")
    assert "| 30 | 2.00 |" in text
    assert "| 60 |  | 3% |" in text


@pytest.mark.slow
def test_every_contender_runs(tmp_path: Path) -> None:
    flags = ["--size", "tiny", "--tasks", "2", "--baseline_tasks", "2", "--repeats", "1", "--dtypes", "float32"]
    environment = {"PYTHONPATH": f"{commands.ROOT / 'src'}:{commands.ROOT}"}
    done = commands.run(["-m", "benchmarks", *flags, "--output_dir", "out"], tmp_path, environment)
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {name: len(runs) for name, runs in document["results"]["float32"].items()} == {
        "ceiling": 1,
        "padded": 1,
        "best": 1,
        "layertap": 1,
    }
    assert (tmp_path / "out" / "results.png").stat().st_size > 1000
    assert "Layertap waited for" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("measure", ["depth", "sites", "stages", "formats", "memory", "start"])
def test_every_measure_says_a_figure(tmp_path: Path, measure: str) -> None:
    flags = ["--size", "tiny", "--tasks", "4", "--repeats", "1", "--dtypes", "float32", "--measure", measure]
    environment = {"PYTHONPATH": f"{commands.ROOT / 'src'}:{commands.ROOT}"}
    done = commands.run(["-m", "benchmarks", *flags, "--output_dir", "out"], tmp_path, environment)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d\.\d|\d %", done.stdout)


def test_the_reader_is_measured_beside_plain_reads(tmp_path: Path) -> None:
    flags = ["--gb", "0.004", "--shard_gb", "0.002", "--hidden", "64", "--repeats", "2", "--folder", str(tmp_path)]
    environment = {"PYTHONPATH": f"{commands.ROOT / 'src'}:{commands.ROOT}"}
    done = commands.run(["-m", "benchmarks.reading", *flags], tmp_path, environment)
    assert done.returncode == 0, done.stderr
    rates = json.loads(done.stdout.splitlines()[-1])
    assert {cache: {name: len(own) for name, own in by.items()} for cache, by in rates.items()} == {
        cache: {"plain": 2, "in_order": 2, "shuffled": 2} for cache in ("disk", "cached")
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
