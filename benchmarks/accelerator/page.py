"""report.md: what results.jsonl holds, for a person: the aims first, then each part."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.accelerator import records
from benchmarks.accelerator.aims import aims, largest_product
from benchmarks.accelerator.config import PARTS, TITLES
from benchmarks.accelerator.records import Record


def write(folder: Path) -> None:
    """Write the report again. A reader sees either the old one or the new one."""
    found = records.read(folder)
    partial = folder / f"{records.REPORT}.partial"
    partial.write_text("\n".join(_lines(found)) + "\n")
    partial.replace(folder / records.REPORT)


def line(record: Record) -> str:
    """One record, for a terminal."""
    name = f"{record['part']}, {record['case']}"
    if record["what"] == "missed":
        return f"{name}: no time was left"
    if record["what"] == "failed":
        return f"{name}: FAILED, {record['reason']}: {_last_words(record)}"
    return f"{name}: " + ", ".join(f"{key} {shown(value)}" for key, value in _scalars(record["figures"]).items())


def shown(value: object) -> str:
    """A figure as a person reads it: three digits that count."""
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def with_ceiling(found: Sequence[Record]) -> list[Record]:
    """The speeds with the part of the largest bfloat16 product of the same run that they reach."""
    largest = largest_product(found)

    def share(record: Record) -> Record:
        if largest is None or record["part"] not in ("layertap", "transformers") or record["what"] != "figures":
            return record
        of_ceiling = f"{record['figures']['TFLOP/s'] / largest:.0%}"
        return record | {"figures": {"of the ceiling": of_ceiling} | record["figures"]}

    return [share(record) for record in found]


def _lines(found: Sequence[Record]) -> Iterable[str]:
    yield "# A run on an accelerator\n"
    for record in found:
        if record["what"] == "machine":
            yield from (f"- {key}: {value}" for key, value in record["machine"].items())
            yield f"- {', '.join(f'{name} {version}' for name, version in record['versions'].items() if version)}"
            if record["platform"] == "cpu":
                yield "\n**A rehearsal on a CPU, with tiny models: its figures mean nothing.**"
    yield from _aims(found)
    found = with_ceiling(found)
    for part in PARTS:
        own = [record for record in found if record["part"] == part]
        if own:
            yield f"\n## {TITLES[part]}\n"
            yield from _table([record for record in own if record["what"] == "figures"])
            yield from _lists([record for record in own if record["what"] == "figures"])
            yield from (
                f"\n**{record['case']} failed**: {record['reason']}: `{_last_words(record)}`"
                for record in own
                if record["what"] == "failed"
            )
            yield from (f"\nNo time was left for {record['case']}." for record in own if record["what"] == "missed")


def _aims(found: Sequence[Record]) -> Iterable[str]:
    rows = [aim.cells() for aim in aims(found)]
    yield "\n## Aims beside what was measured\n"
    yield _row(["", "wanted", "measured", ""])
    yield _row(["---"] * 4)
    yield from map(_row, rows)


def _table(own: Sequence[Record]) -> Iterable[str]:
    """Cases of the same figures in one table."""
    by_columns: dict[tuple[str, ...], list[Record]] = {}
    for record in own:
        by_columns.setdefault(tuple(_scalars(record["figures"])), []).append(record)
    for columns, rows in by_columns.items():
        yield _row(["", *columns])
        yield _row(["---"] * (len(columns) + 1))
        yield from (_row([row["case"], *(shown(row["figures"][name]) for name in columns)]) for row in rows)
        yield ""


def _lists(own: Sequence[Record]) -> Iterable[str]:
    for record in own:
        for name, value in record["figures"].items():
            if isinstance(value, list) and value:
                yield f"{record['case']}, {name}: {', '.join(map(shown, value))}\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _scalars(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in figures.items() if not isinstance(value, list)}


def _last_words(record: Record) -> str:
    lines = [line for line in record["printed"].splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else "it printed nothing"
