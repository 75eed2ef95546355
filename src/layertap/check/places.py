"""Check several output folders together: those of many workers, or those that done-manifests name.

Each is checked like a single one (verify.py). A folder that cannot be checked is a finding, and
does not hide others.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import PurePosixPath

from layertap.check.verify import OnRead, VerifyReport, verify_folder
from layertap.errors import DamageError, UsageError
from layertap.objects import open_store
from layertap.objects.base import ObjectStore
from layertap.shards.manifest import FILE_NAME, Json


@dataclass(frozen=True)
class PlacesReport:
    """What was read, and everything that is wrong with it."""

    place: str
    reports: Mapping[str, VerifyReport]
    """By the path or URL of the folder."""
    findings: tuple[str, ...] = ()
    """Findings that are not within one folder."""
    unfinished: tuple[str, ...] = ()
    """What is unfinished, which is not damage."""

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings and all(report.sound for report in self.reports.values())

    @property
    def complete(self) -> bool:
        """Whether nothing is unfinished."""
        return not self.unfinished and all(report.manifest.complete for report in self.reports.values())

    def describe(self) -> str:
        """Return lines for the user: what is wrong or unfinished, then a summary."""
        reports = self.reports.values()
        open_ones = [f"{report.folder}: is not complete" for report in reports if not report.manifest.complete]
        empty = [f"{it.folder}: is complete, and EMPTY: it holds no sample" for it in reports if it.empty]
        damaged = [report.describe() for report in reports if not report.sound]
        counts = ", ".join(f"{count} {name}" for name, count in self._totals().items())
        wrong = len(self.findings) + sum(len(report.findings) for report in reports)
        state = "complete" if self.complete else "sound so far, not everything is complete"
        verdict = f"{state}; every file read back and checked" if self.sound else f"DAMAGED; {wrong} findings"
        return "\n".join(
            (*self.unfinished, *open_ones, *empty, *self.findings, *damaged, f"{self.place}: {counts}: {verdict}")
        )

    def to_json(self) -> Json:
        """Return the same for a program."""
        return {
            "place": self.place,
            "sound": self.sound,
            "complete": self.complete,
            **self._totals(),
            "findings": list(self.findings),
            "unfinished": list(self.unfinished),
            "reports": [report.to_json() for report in self.reports.values()],
        }

    def _totals(self) -> dict[str, int]:
        manifests = [report.manifest for report in self.reports.values()]
        return {
            "folders": len(manifests),
            "shards": sum(len(manifest.shards) for manifest in manifests),
            "samples": sum(manifest.samples for manifest in manifests),
            "tokens": sum(manifest.tokens for manifest in manifests),
        }


def find_outputs(store: ObjectStore) -> list[str]:
    """Find the output folders below the store's URL, as relative paths; UsageError if none."""
    paths = (PurePosixPath(info.name) for info in store.list())
    found = [path.parent.as_posix() for path in paths if path.name == FILE_NAME]
    if not found:
        raise UsageError(
            f"{store.url}: has no {FILE_NAME} there or below, so it is not the output of a run; check the path"
        )
    return found


def verify_places(place: str, outputs: Sequence[str], on_read: OnRead = lambda _done, _total: None) -> PlacesReport:
    """Check the output folders at these paths or URLs.

    `on_read` gets the bytes read, and an estimate of all bytes: it assumes that the remaining
    folders are as large as the others.
    """
    reports: dict[str, VerifyReport] = {}
    findings: list[str] = []
    before = 0
    for number, output in enumerate(outputs, 1):
        count = _Count(on_read, before, len(outputs) / number)
        try:
            with closing(open_store(output)) as store:
                reports[output] = verify_folder(store, count)
        except (DamageError, UsageError) as error:
            findings.append(f"{output}: {str(error).removeprefix(f'{output}: ')}")
        before += count.total
    return PlacesReport(place, reports, tuple(findings))


class _Count:
    """Reports the progress over all folders from the progress in one."""

    def __init__(self, on_read: OnRead, before: int, scale: float) -> None:
        self.total = 0
        self._on_read = on_read
        self._before = before
        self._scale = scale

    def __call__(self, done: int, total: int) -> None:
        self.total = total
        self._on_read(self._before + done, round((self._before + total) * self._scale))
