"""The parts of a run on an accelerator that can run without one, so that a lent card needs no
debugging.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import commands
import pytest

from benchmarks.accelerator import records, runner
from benchmarks.accelerator.__main__ import is_bad, main, printer
from benchmarks.accelerator.config import Limits

ENVIRONMENT = {"PYTHONPATH": f"{commands.ROOT / 'src'}:{commands.ROOT}"}

PART = """
import json, os, sys, time
names, skip = sys.argv[1].split(","), sys.argv[2:]

def add(**record):
    with open("results.jsonl", "a") as file:
        file.write(json.dumps({"part": "kernel", **record}) + "\\n")

add(what="cases", cases=names)
for name in names:
    if name in skip:
        continue
    add(what="begun", case=name)
    if name.startswith("dies"):
        print("about to die of", name, flush=True)
        os.abort()
    if name.startswith("hangs"):
        time.sleep(600)
    add(what="figures", case=name, figures={"pid": os.getpid()})
"""


def _run(folder: Path, names: str, *, seconds: float = 60, case_seconds: float = 60) -> list[records.Record]:
    """Return what is written about a part whose cases have these names."""

    def command(skip: Sequence[str]) -> list[str]:
        return [sys.executable, "-c", PART, names, *skip]

    here = os.getcwd()
    os.chdir(folder)
    said: list[int] = []
    try:
        limits = Limits(seconds, case_seconds)
        runner.run_part(folder, "kernel", command, os.environ, limits, lambda: said.append(len(records.read(folder))))
    finally:
        os.chdir(here)
    found = records.read(folder)
    assert said[-1] == len(found), "the report has the last record too"
    return [record for record in found if record["what"] in ("figures", "failed", "missed")]


def test_a_case_that_dies_is_recorded_and_those_behind_it_run(tmp_path: Path) -> None:
    found = _run(tmp_path, "one,dies,two,dies too,three")
    assert [(record["case"], record["what"]) for record in found] == [
        ("one", "figures"),
        ("dies", "failed"),
        ("two", "figures"),
        ("dies too", "failed"),
        ("three", "figures"),
    ]
    assert "status -6" in found[1]["reason"]
    assert "about to die of dies" in found[1]["printed"]
    assert "about to die of dies too" not in found[1]["printed"]


@pytest.mark.whole
def test_a_case_that_hangs_is_ended_with_all_of_its_process(tmp_path: Path) -> None:
    begun = time.monotonic()
    found = _run(tmp_path, "one,hangs,two", case_seconds=1.5)
    assert [(record["case"], record["what"]) for record in found] == [
        ("one", "figures"),
        ("hangs", "failed"),
        ("two", "figures"),
    ]
    assert "more than 2 s" in found[1]["reason"]
    assert time.monotonic() - begun < 120
    with pytest.raises(ProcessLookupError):
        os.kill(found[0]["figures"]["pid"], 0)


@pytest.mark.whole
def test_what_a_part_has_no_time_for_is_named(tmp_path: Path) -> None:
    found = _run(tmp_path, "hangs,two,three", seconds=1.5)
    assert [(record["case"], record["what"]) for record in found] == [("hangs", "failed"), ("three; two", "missed")]
    assert all(map(is_bad, found))


def test_half_a_line_of_a_process_that_was_killed_is_left_out(tmp_path: Path) -> None:
    records.append(tmp_path, {"part": "kernel", "what": "begun", "case": "one"})
    with (tmp_path / records.RESULTS).open("a") as file:
        file.write('{"part": "ker')
    assert records.begun(records.read(tmp_path), "kernel") == ["one"]


def _record(part: str, case: str, what: str = "figures", **figures: Any) -> records.Record:
    return {
        "part": part,
        "case": case,
        "what": what,
        "figures": figures,
        "reason": "it died",
        "printed": "a\nlast words",
    }


def test_the_report_has_figures_failures_and_the_part_of_the_ceiling(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    say = printer(tmp_path)
    for record in (
        _record("kernel", "packed 7b bfloat16", error=0.0012345, exact=False),
        _record("kernel", "packed 7b float32", "failed"),
        _record("ceiling", "torch bfloat16", **{"TFLOP/s": 600.0}),
        _record("ceiling", "torch float32", **{"TFLOP/s": 900.0}),
        _record("layertap", "7b all layers", **{"tokens/s": 30_123.4, "TFLOP/s": 300.0}),
    ):
        records.append(tmp_path, record)
        say()
    report = (tmp_path / records.REPORT).read_text()
    assert "| packed 7b bfloat16 | 0.00123 | NO |" in report
    assert "**packed 7b float32 failed**: it died: `last words`" in report
    assert "| 7b all layers | 50% | 30,123 | 300 |" in report
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 5
    assert printed[1] == "kernel, packed 7b float32: FAILED, it died: last words"


def test_parts_leave_results_and_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])
    with pytest.raises(SystemExit) as ended:
        main(["--out", str(tmp_path / "out"), "--platform", "cpu", "--parts", "prepare", "--work", str(tmp_path)])
    assert ended.value.code == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / records.RESULTS).read_text().splitlines()]
    assert [line["what"] for line in lines] == ["machine", "cases", *["begun", "figures"] * 3]
    report = (tmp_path / "out" / records.REPORT).read_text()
    assert "| checkpoint | tiny |" in report
    assert "its figures mean nothing" in report
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "parts",
    [
        ("kernel",),
        ("prepare", "reference", "parity", "ceiling", "layertap"),
        ("prepare", "transformers", "time"),
        ("prepare", "command", "stream"),
    ],
    ids=" ".join,
)
def test_all_parts_are_rehearsed_without_what_only_buckets_need(tmp_path: Path, parts: tuple[str, ...]) -> None:
    for name in ("gcsfs", "s3fs"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} is not in the image')\n")
    flags = ["--platform", "cpu", "--minutes", "20", "--out", "out", "--work", "work", "--parts", *parts]
    given = {**ENVIRONMENT, "PYTHONPATH": f"{tmp_path}:{ENVIRONMENT['PYTHONPATH']}"}
    done = commands.run(["-m", "benchmarks.accelerator", *flags], tmp_path, given)
    assert done.returncode == 0, done.stdout
    report = (tmp_path / "out" / records.REPORT).read_text()
    assert report.count("\n## ") == len(parts) + 1  # the aims
    assert "NO" not in [cell.strip() for line in report.splitlines() for cell in line.split("|")]
    assert list((tmp_path / "work").iterdir()) == []
