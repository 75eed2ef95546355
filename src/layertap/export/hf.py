"""`--to hf`: a folder for `datasets.load_from_disk`, with one row per sample.

A row has the facts about the sample (`task_id`, `origin` as JSON, ...), a list with one number per
token for each column (`token_ids`, `positions`, `flags`, the labels), and for each tap a matrix
[tokens, width], named as in our own shards: `residual.12`. Samples keep their lengths. A sample
without wanted tokens has no row.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from layertap.core.columns import COLUMNS
from layertap.core.strict_json import dump_json
from layertap.core.taps import Tap
from layertap.errors import UsageError
from layertap.export import arrow
from layertap.export.form import Form, Record, Take, listed
from layertap.export.source import SampleWords, Source, join
from layertap.reader.pieces import Rows
from layertap.shards.safetensors import tensor_name

_NUMBER = np.dtype(np.int64)
_LENGTHS = "tokens"


class HuggingFaceForm(Form):
    """One row per sample, for the `datasets` library."""

    def __init__(self, source: Source, folder: Path, dtype: np.dtype) -> None:
        super().__init__(source, folder, dtype)
        words = ("source", "task_id", "text_preview", "origin")
        self._columns: dict[str, arrow.Column] = {
            "sample": arrow.Single(_NUMBER),
            "sample_idx": arrow.Single(_NUMBER),
            **{name: arrow.Single(None) for name in words},
            **{name: arrow.Values(None, COLUMNS[name]) for name in source.columns},
            **{tensor_name(tap): arrow.Matrix(None, width, dtype) for tap, width in source.widths.items()},
        }
        self._schema = arrow.schema(self._columns)

    def name_of(self, tap: Tap) -> str:
        return tensor_name(tap)

    def files(self, shard: int) -> tuple[str, ...]:
        return (f"data-{shard:05d}-of-{len(self.source):05d}.arrow",)

    def records(self, shard: int) -> Iterator[Record]:
        samples, first = self.source.samples(shard), self.source.first_sample(shard)
        for rows in whole_samples(self.chunks(shard)):
            numbers, lengths = np.unique(rows.samples, return_counts=True)
            told = [samples[number - first] for number in numbers.tolist()]
            values = [self.converted(tap, own) for tap, own in zip(self.source.taps, rows.activations, strict=True)]
            yield {
                _LENGTHS: lengths.astype(np.int64),
                "sample": numbers.astype(np.int64),
                **_words(told),
                **{name: rows.columns[name] for name in self.source.columns},
                **dict(zip(map(tensor_name, self.source.taps), values, strict=True)),
            }

    def write(self, shard: int, records: Iterable[Record]) -> None:
        arrow.write_stream(self.folder / self.files(shard)[0], self._schema, map(self._encode, records))

    def _encode(self, record: Record) -> list[arrow.Arrow]:
        lengths = record[_LENGTHS]
        assert isinstance(lengths, np.ndarray)
        return [_encoded(column, record[name], lengths) for name, column in self._columns.items()]

    @contextmanager
    def reading(self, shard: int) -> Iterator[Take]:
        with closing(arrow.read_stream(self.folder / self.files(shard)[0])) as batches:
            yield lambda _: self._decoded(shard, next(batches, None))

    def _decoded(self, shard: int, batch: Mapping[str, arrow.Arrow] | None) -> Record | None:
        if batch is None:
            return None
        lengths = arrow.lengths_of(batch["token_ids"])
        columns = {name: self._values(shard, own, batch[name], lengths) for name, own in self._columns.items()}
        return {_LENGTHS: lengths, **columns}

    def _values(
        self, shard: int, column: arrow.Column, found: arrow.Arrow, lengths: np.ndarray
    ) -> np.ndarray | list[Any]:
        if isinstance(column, arrow.Single):
            return found.to_pylist() if column.dtype is None else arrow.flat(found)
        if not np.array_equal(arrow.lengths_of(found), lengths):
            raise self.damage(shard, "its lists differ in length")
        values = arrow.flat(found)
        return values.reshape(-1, column.width) if isinstance(column, arrow.Matrix) else values

    def rows(self, record: Record) -> int:
        return len(record[_LENGTHS])

    def tokens(self, record: Record) -> int:
        return len(record["token_ids"])

    def finish(self) -> None:
        if not self.total("rows"):
            raise UsageError("no sample has a wanted token; choose other tokens with --exclude and --include")
        files = [name for shard in range(len(self.source)) for name in self.files(shard)]
        arrow.write_index(self.folder, self._columns, files, self.source.digest[:16])

    def describe(self) -> list[str]:
        return [
            f"{self.total('rows')} samples; columns {listed(self.source.columns)},"
            f" {listed([tensor_name(tap) for tap in self.source.taps])}, and facts about the sample",
            "norms per token and tap: left out, because they follow from the values",
        ]


def _words(told: list[SampleWords]) -> dict[str, np.ndarray | list[Any]]:
    return {
        "sample_idx": np.array([sample.sample_idx for sample in told], np.int64),
        "source": [sample.source for sample in told],
        "task_id": [sample.words.task_id for sample in told],
        "text_preview": [sample.words.text_preview for sample in told],
        "origin": [dump_json(sample.words.origin) for sample in told],
    }


def _encoded(column: arrow.Column, values: np.ndarray | list[Any], lengths: np.ndarray) -> arrow.Arrow:
    if isinstance(values, list):
        return arrow.words(values)
    if isinstance(column, arrow.Matrix):
        return arrow.matrices(values, lengths)
    return arrow.numbers(values) if isinstance(column, arrow.Single) else arrow.lists(arrow.numbers(values), lengths)


def whole_samples(chunks: Iterable[Rows]) -> Iterator[Rows]:
    """Yield the same tokens, cut only between samples."""
    rest: list[Rows] = []
    for chunk in chunks:
        if not len(chunk):
            continue
        rows = join([*rest, chunk])
        last = int(np.searchsorted(rows.samples, rows.samples[-1]))
        if last:
            yield rows[:last]
        rest = [rows[last:]]
    yield from rest
