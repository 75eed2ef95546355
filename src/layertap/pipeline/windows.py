"""From records to packed windows: what decides the order of a run, and where it continues.

A window is a run of whole records that gives at least `window_samples` samples (or the rest of the
dataset). Its samples are packed among themselves, and emitted step by step, row by row. So the
order of emitted samples follows from the dataset and the settings alone, and "window w, e samples
emitted" is an exact position: a restart packs the same window again and drops its first e samples.
Windows fix the order, not the shards: at 24 layers of float32 a 1 GB shard holds nine prompts, far
too few to fill rows well.

A restart reads the dataset again from its beginning up to its position (parsing is some thousand
times faster than extracting) and compares a digest of those records: tasks already extracted must
be the same, later ones may have been repaired.

Every machine counts every record, so `sample_idx` is the same whichever machine extracts a sample,
if they read the same dataset. (A record that is not a task counts for no samples: if it is repaired
between two machines' runs, the numbers after it shift.) A machine makes prompts only of its own
records. A record that is not a task, or a sample that is too long, raises before any step of its
window.
"""

import hashlib
import json
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any, Literal

import numpy as np

from layertap.config.extract import Overlong
from layertap.core.columns import SIDES, TEST
from layertap.core.records import BadTask, GoodRecord, Record
from layertap.core.sample import Sample
from layertap.errors import BadTaskError, DamageError, OverlongError, RunMismatchError
from layertap.pipeline.packing import Step, pack_window
from layertap.pipeline.prefix import Prefixes
from layertap.prompts import PromptMaker

_NUMBERS = ("record", "sample_idx", "emitted", "overlong_before")


@dataclass(frozen=True)
class Position:
    """Where a window begins, and what was left out before it."""

    record: int = 0
    """Number of records before the window."""
    sample_idx: int = 0
    """The next sample's number."""
    digest: str = hashlib.sha256().hexdigest()
    """SHA-256 (hex) of the tasks before the window."""
    emitted: int = 0
    """Samples of the window that are already committed."""
    window_digest: str | None = None
    """`digest` after the window, if some of its samples are committed."""
    overlong_before: int = 0
    """How many of `overlong_samples` come before the window."""
    skipped_tasks: tuple[Mapping[str, Any], ...] = ()
    """This machine's records that are not tasks; including the window's, once it is begun."""
    overlong_samples: tuple[Mapping[str, Any], ...] = ()
    """Samples longer than allowed, with what was done to them; likewise."""

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "Position":
        """Read what `to_json` wrote; raises DamageError."""
        try:
            lists: dict[str, Any] = {name: tuple(raw[name]["list"]) for name in ("skipped_tasks", "overlong_samples")}
            numbers: dict[str, Any] = {name: operator.index(raw[name]) for name in _NUMBERS}
            return cls(**numbers, digest=raw["digest"], window_digest=raw["window_digest"], **lists)
        except (KeyError, TypeError) as error:
            raise DamageError(f"the manifest's progress is edited or damaged: {error} is missing or wrong") from error

    def to_json(self) -> dict[str, Any]:
        """As in the manifest; lists include their count."""
        raw = asdict(self)
        for name in ("skipped_tasks", "overlong_samples"):
            raw[name] = {"count": len(raw[name]), "list": list(raw[name])}
        return raw


@dataclass(frozen=True)
class Window:
    """Samples packed among themselves; `end` is where the next window begins."""

    start: Position
    samples: Sequence[Sample]
    steps: Sequence[Step]
    end: Position

    def position(self, emitted: int) -> Position:
        """The position after the first `emitted` of its samples are committed."""
        return replace(
            self.start,
            emitted=emitted,
            window_digest=self.end.digest,
            skipped_tasks=self.end.skipped_tasks,
            overlong_samples=self.end.overlong_samples,
        )


@dataclass(frozen=True)
class WindowRules:
    """The settings that windows depend on."""

    window_samples: int
    ladder: tuple[int, ...]
    batch_size: int
    longest: int
    """How many tokens a sample may have."""
    overlong: Overlong
    on_bad_task: Literal["error", "skip"]
    machine_id: int
    total_machines: int
    devices: int = 1
    """Devices of this host that share the rows of its steps."""
    first_sample_idx: int = 0
    """Samples of the whole dataset before the first record."""
    context: int | None = None
    """How many positions the model knows, if it says so."""
    prefixes: Prefixes = Prefixes()  # noqa: RUF009 - it is frozen
    """The prefixes of samples."""

    def pack(self, samples: Sequence[Sample]) -> list[Step]:
        """Pack a window's samples into steps; of each, only the part after its shared prefix."""
        numbers = [self.prefixes.number(sample) for sample in samples]
        lengths = [sample.tokens - self.prefixes.length(n) for sample, n in zip(samples, numbers, strict=True)]
        return pack_window(lengths, self.ladder, self.batch_size, self.devices, numbers)


def read_windows(
    records: Iterator[Record], maker: PromptMaker, rules: WindowRules, start: Position
) -> Iterator[Window]:
    """The windows from `start` on; one may be empty, if a machine's share ends early.

    Raises BadTaskError and OverlongError as `rules` say, and RunMismatchError if the records before
    `start` are not those that were extracted.
    """
    tally = _Tally(maker, rules)
    for record in islice(records, start.record):
        tally.count(record, tally.checked(record))
    tally.require(start.record, start.digest)
    tally.overlong = list(start.overlong_samples[: start.overlong_before])
    emitted = start.emitted
    while True:
        begin = replace(tally.position(), emitted=emitted)
        own = tally.take(records)
        if emitted:
            tally.require(tally.records, start.window_digest)
        if tally.records == begin.record:
            return
        samples = [rules.prefixes.marked(sample) for sample in tally.within_length(maker.make(own))]
        yield Window(begin, samples, rules.pack(samples), tally.position())
        emitted = 0


def _told(sample: Sample, rules: WindowRules) -> str:
    return (
        f"task {sample.task_id}, sample {sample.sample_idx}: {sample.tokens} tokens, but"
        f" {'the model knows positions up to' if rules.longest == rules.context else '--max_seq_length is'}"
        f" {rules.longest}"
    )


def _way_out(sample: Sample, rules: WindowRules) -> str:
    raised = [] if rules.longest == rules.context else ["raise it"]
    if sample.origin.get("augmentation") is not None:
        return ", ".join([*raised, "show fewer pairs with --max_train_pairs", "or pass --overlong skip"])
    return ", ".join([*raised, "or pass --overlong skip, truncate or split"]).removeprefix("or ")


class _Tally:
    """Counts records, samples and what was left out, as records pass."""

    def __init__(self, maker: PromptMaker, rules: WindowRules) -> None:
        self.records = 0
        self._samples = rules.first_sample_idx
        self._hash = hashlib.sha256()
        self._skipped: list[Mapping[str, Any]] = []
        self.overlong: list[Mapping[str, Any]] = []
        self._maker = maker
        self._rules = rules

    def position(self) -> Position:
        return Position(
            record=self.records,
            sample_idx=self._samples,
            digest=self._hash.hexdigest(),
            overlong_before=len(self.overlong),
            skipped_tasks=tuple(self._skipped),
            overlong_samples=tuple(self.overlong),
        )

    def require(self, records: int, digest: str | None) -> None:
        """Check that so many records passed, and that they are those that were extracted."""
        if (self.records, self._hash.hexdigest()) != (records, digest):
            raise RunMismatchError(
                f"the first {records} tasks of the dataset are not those that were extracted here;"
                " give the same dataset, or another --output_dir"
            )

    def take(self, records: Iterator[Record]) -> list[tuple[int, GoodRecord]]:
        """The machine's share of the next window of records, with first sample numbers."""
        own: list[tuple[int, GoodRecord]] = []
        samples = 0
        while samples < self._rules.window_samples and (found := next(records, None)) is not None:
            record, mine, first = self.checked(found), self._mine(), self._samples
            if isinstance(record, BadTask):
                self._refuse(record)
            elif mine:
                own.append((first, record))
                samples += self._maker.expected(record)
            self.count(found, record)
        return own

    def checked(self, record: Record) -> Record:
        """The record, or an error if the model or its chat template refuses it."""
        reason = None if isinstance(record, BadTask) else self._maker.refusal(record)
        return record if reason is None else BadTask(f"record {self.records + 1}", record.task_id, reason)

    def count(self, found: Record, record: Record) -> None:
        """Count a record, as it was found and as it was checked.

        A record that only this model refuses still has its sample numbers.
        """
        if not isinstance(found, BadTask):
            self._samples += self._maker.count(found)
        if not isinstance(record, BadTask):
            self._hash.update(json.dumps(asdict(record), separators=(",", ":")).encode())
        elif self._mine():
            self._skipped.append({"where": record.where, "task_id": record.task_id, "reason": record.reason})
        self.records += 1

    def within_length(self, samples: Sequence[Sample]) -> list[Sample]:
        """Leave out or cut what is too long; raises OverlongError under `--overlong error`."""
        kept = []
        for sample in samples:
            if len(sample.token_ids) <= self._rules.longest:
                kept.append(sample)
                continue
            self._list_overlong(sample)
            if self._rules.overlong == "truncate":
                self._require_question(sample)
                kept.append(sample.cut(self._rules.longest))
        return kept

    def _mine(self) -> bool:
        return self.records % self._rules.total_machines == self._rules.machine_id

    def _refuse(self, record: BadTask) -> None:
        if self._rules.on_bad_task == "error":
            raise BadTaskError(f"{record}. Repair it and run the same command again, or pass --on_bad_task skip")

    def _require_question(self, sample: Sample) -> None:
        """Refuse to cut an ARC prompt before its answer begins."""
        answer = np.flatnonzero((sample.columns["example"] == TEST) & (sample.columns["side"] == SIDES.index("output")))
        if sample.origin.get("augmentation") is not None and not 0 < answer[:1].sum() <= self._rules.longest:
            raise OverlongError(
                f"{_told(sample, self._rules)}: --overlong truncate would cut its question off; raise"
                " --max_seq_length, show fewer pairs with --max_train_pairs, or pass --overlong skip"
            )

    def _list_overlong(self, sample: Sample) -> None:
        rules = self._rules
        if rules.overlong == "error":
            raise OverlongError(f"{_told(sample, rules)}; {_way_out(sample, rules)}")
        if rules.overlong == "split":
            raise OverlongError(
                f"{_told(sample, rules)}: an ARC prompt is not split; raise --max_seq_length, or show fewer pairs with"
                " --max_train_pairs"
            )
        action = {"skip": "skipped", "truncate": "truncated"}[rules.overlong]
        entry = {"sample_idx": sample.sample_idx, "task_id": sample.task_id, "tokens": sample.tokens, "action": action}
        self.overlong.append(entry)
