"""The interface of an export format: make records from a shard, write them, and read them back.

A record is some tokens in the form of the format. Records are a pure function of the shard and the
settings. Writing consumes them; the check makes them again and compares them with the files. So a
format defines its content once, and every export tests both directions.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from layertap.core.taps import Tap
from layertap.errors import DamageError
from layertap.export.source import Source
from layertap.export.values import convert, worst_error
from layertap.reader.pieces import Rows

Record = Mapping[str, np.ndarray | list[Any]]
"""Arrays and lists of texts, by their names in the format."""
Part = Mapping[str, Any]
"""Facts about a written shard, as JSON: `tokens` and `rows`; `left_out`, the wanted tokens that the
format cannot hold; and `errors`, the worst loss of precision of each tap, if any."""


Take = Callable[[Record | None], Record | None]
"""Reads the next record of a file, with the length of the given one; None at the end. Given None,
it checks that the file has ended."""


class Form(ABC):
    """One format, for one export into `folder`."""

    def __init__(self, source: Source, folder: Path, dtype: np.dtype) -> None:
        self.source = source
        self.folder = folder
        self.dtype = dtype
        self.parts: list[Part] = []
        """The shards written so far, in order."""
        self._wanted = 0
        self._errors: dict[str, float] | None = None
        """The errors of the shard being written."""

    @abstractmethod
    def name_of(self, tap: Tap) -> str:
        """Return the format's name of a tap."""

    @abstractmethod
    def files(self, shard: int) -> tuple[str, ...]:
        """Return the files of a shard, as paths below the folder."""

    @abstractmethod
    def records(self, shard: int) -> Iterator[Record]:
        """Make the records that the format should hold for a shard."""

    @abstractmethod
    def write(self, shard: int, records: Iterable[Record]) -> None:
        """Write the files of a shard; each is complete or does not exist. Raises StorageError."""

    @abstractmethod
    def reading(self, shard: int) -> AbstractContextManager[Take]:
        """Open the files of a shard, to read one record after another."""

    @abstractmethod
    def rows(self, record: Record) -> int:
        """Return how many rows of the format a record has."""

    @abstractmethod
    def tokens(self, record: Record) -> int:
        """Return how many tokens a record has."""

    @abstractmethod
    def finish(self) -> None:
        """Write the files that make a reader accept the folder, once all parts are written."""

    @abstractmethod
    def describe(self) -> list[str]:
        """Describe the content, then what the format could not hold, one line each."""

    def settings(self) -> dict[str, Any]:
        """Return the settings of this format that decide the bytes."""
        return {}

    def total(self, name: str) -> int:
        """Return the sum of `tokens`, `rows` or `left_out` over all parts."""
        return sum(part[name] for part in self.parts)

    def export(self, shard: int, show: Callable[[int], None]) -> Part:
        """Write a shard and return its facts; calls `show` with the number of new tokens."""
        self._wanted, self._errors = 0, {}
        told = {"tokens": 0, "rows": 0}

        def counted() -> Iterator[Record]:
            for record in self.records(shard):
                yield record
                told["tokens"] += self.tokens(record)
                told["rows"] += self.rows(record)
                show(self.tokens(record))

        self.write(shard, counted())
        part = {**told, "left_out": self._wanted - told["tokens"], "errors": self._errors}
        self._errors = None
        return part

    def check(self, shard: int, show: Callable[[int], None]) -> None:
        """Compare a shard's files with what they should hold; raises DamageError."""
        with self.reading(shard) as take:
            for wanted in self.records(shard):
                found = take(wanted)
                if found is None:
                    raise self.damage(shard, "ends too early")
                for name in {**wanted, **found}:
                    if not _equal(wanted.get(name), found.get(name)):
                        raise self.damage(shard, f"{name} is not what was written", name)
                show(self.tokens(wanted))
                del wanted, found  # otherwise they stay in memory while the next ones are made
            if take(None) is not None:
                raise self.damage(shard, "has data after its end")

    def damage(self, shard: int, what: str, name: str = "") -> DamageError:
        """Make the error for a wrong file; of several files, the one for `name`."""
        files = self.files(shard)
        own = next((file for file in files if file.startswith(f"{name}/")), files[0])
        return DamageError(
            f"{self.folder / own}, shard {shard + 1}: {what}; delete that file and run the same command again"
        )

    def chunks(self, shard: int) -> Iterator[Rows]:
        """Yield the wanted tokens of a shard, and count them."""
        for rows in self.source.chunks(shard):
            self._wanted += len(rows)
            yield rows

    def converted(self, tap: Tap, values: np.ndarray) -> np.ndarray:
        """Convert a tap's values to the dtype of the export, and record the loss of precision."""
        written = convert(values, self.dtype, tap)
        if self._errors is not None and (error := worst_error(values, written)):
            name = self.name_of(tap)
            self._errors[name] = max(error, self._errors.get(name, 0.0))
        return written


def listed(names: Collection[str]) -> str:
    """List names; of many, only the first ones and the count."""
    most = 6
    words = ", ".join(list(names)[:most])
    return words if len(names) <= most else f"{words}, ... ({len(names)} in all)"


def _equal(wanted: np.ndarray | list[Any] | None, found: np.ndarray | list[Any] | None) -> bool:
    """Return whether both are equal to the last bit, including NaN and dtype."""
    if not isinstance(wanted, np.ndarray) or not isinstance(found, np.ndarray):
        return type(wanted) is type(found) and wanted == found
    if (wanted.dtype, wanted.shape) != (found.dtype, found.shape):
        return False
    return bool(np.array_equal(_bits(wanted), _bits(found)))


def _bits(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")
