"""What a format of exports is: records of arrays, made of a shard, written, and read back.

A record is some tokens as the format has them. Records are a pure function of the shard and the
settings: writing consumes them, and the check makes them again and compares them with what the
files hold. So a format is told once what it should contain, and both directions are tested on every
export.
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
"""Arrays, and lists of words, by their names in the format."""
Part = Mapping[str, Any]
"""What is known of a shard that was written, as JSON: `tokens` and `rows`; `left_out`, the wanted
tokens that the format has no place for; and where precision was lost `errors`, the worst of each
tap by its name."""


Take = Callable[[Record | None], Record | None]
"""The next record of a file, of the length of the one that is given; None at the end, where None is
given."""


class Form(ABC):
    """One format, for one export into `folder`."""

    def __init__(self, source: Source, folder: Path, dtype: np.dtype) -> None:
        self.source = source
        self.folder = folder
        self.dtype = dtype
        self.parts: list[Part] = []
        """The shards that are written, in their order."""
        self._wanted = 0
        self._errors: dict[str, float] | None = None
        """Those of the shard that is being written."""

    @abstractmethod
    def name_of(self, tap: Tap) -> str:
        """What the format calls a tap."""

    @abstractmethod
    def files(self, shard: int) -> tuple[str, ...]:
        """The files that are written of a shard, by their paths below the folder."""

    @abstractmethod
    def records(self, shard: int) -> Iterator[Record]:
        """What the format should hold of a shard."""

    @abstractmethod
    def write(self, shard: int, records: Iterable[Record]) -> None:
        """Write the files of a shard; each is whole or not there. Raises StorageError."""

    @abstractmethod
    def reading(self, shard: int) -> AbstractContextManager[Take]:
        """What the files of a shard hold, one record after the other."""

    @abstractmethod
    def rows(self, record: Record) -> int:
        """How many rows of the format a record is."""

    @abstractmethod
    def tokens(self, record: Record) -> int:
        """How many tokens a record has."""

    @abstractmethod
    def finish(self) -> None:
        """Write what makes a reader accept the folder, when all parts are there."""

    @abstractmethod
    def describe(self) -> list[str]:
        """What is there, and then what the format could not carry, a line each."""

    def settings(self) -> dict[str, Any]:
        """What decides the bytes, of this format alone."""
        return {}

    def total(self, name: str) -> int:
        """The sum of `tokens`, `rows` or `left_out` over all parts."""
        return sum(part[name] for part in self.parts)

    def export(self, shard: int, show: Callable[[int], None]) -> Part:
        """Write a shard; what is known of it. `show` is called with so many tokens more."""
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
                del wanted, found  # or they would be in memory while the next ones are made
            if take(None) is not None:
                raise self.damage(shard, "goes on where it should end")

    def damage(self, shard: int, what: str, name: str = "") -> DamageError:
        """The error to raise where a file is not right, of several the one for `name`."""
        files = self.files(shard)
        own = next((file for file in files if file.startswith(f"{name}/")), files[0])
        return DamageError(
            f"{self.folder / own}, shard {shard + 1}: {what}; delete that file and run the same command again"
        )

    def chunks(self, shard: int) -> Iterator[Rows]:
        """The wanted tokens of a shard, counted."""
        for rows in self.source.chunks(shard):
            self._wanted += len(rows)
            yield rows

    def converted(self, tap: Tap, values: np.ndarray) -> np.ndarray:
        """A tap's values in the dtype of the export; what is lost is taken note of."""
        written = convert(values, self.dtype, tap)
        if self._errors is not None and (error := worst_error(values, written)):
            name = self.name_of(tap)
            self._errors[name] = max(error, self._errors.get(name, 0.0))
        return written


def listed(names: Collection[str]) -> str:
    """Names in words; of many the first ones and their number."""
    most = 6
    words = ", ".join(list(names)[:most])
    return words if len(names) <= most else f"{words}, ... ({len(names)} in all)"


def _equal(wanted: np.ndarray | list[Any] | None, found: np.ndarray | list[Any] | None) -> bool:
    """Equal to the last bit, NaN too; the dtypes as well."""
    if not isinstance(wanted, np.ndarray) or not isinstance(found, np.ndarray):
        return type(wanted) is type(found) and wanted == found
    if (wanted.dtype, wanted.shape) != (found.dtype, found.shape):
        return False
    return bool(np.array_equal(_bits(wanted), _bits(found)))


def _bits(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")
