"""`--to saelens`: the cached activations that SAELens' ActivationsStore reads.

A row is a context of `context_size` tokens. It has `token_ids`, and for each tap a column
[context_size, width] with the name of the TransformerLens hook. All taps are in one folder; SAELens
reads the one that its `hook_name` names. (Its own cache runner writes one hook at a time.)

Rows have one length and no mask, so an SAE would be trained on padding. Therefore samples are
concatenated, as SAELens itself does with texts, and cut. The rest of a shard, shorter than a
context, is left out. The order of tokens does not matter to an SAE; to look at contexts, use `--to
hf`.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from layertap.core.hooks import hook_name
from layertap.core.taps import Tap
from layertap.errors import UsageError
from layertap.export import arrow
from layertap.export.form import Form, Record, Take, listed
from layertap.export.source import Source, join
from layertap.reader.pieces import Rows

_TOKEN_IDS = np.dtype(np.int32)


class SaeLensForm(Form):
    """Contexts of one length, for SAELens."""

    def __init__(self, source: Source, folder: Path, dtype: np.dtype, context_size: int) -> None:
        super().__init__(source, folder, dtype)
        self._size = context_size
        self._columns: dict[str, arrow.Column] = {
            hook_name(tap): arrow.Matrix(context_size, width, dtype) for tap, width in source.widths.items()
        }
        self._columns["token_ids"] = arrow.Values(context_size, _TOKEN_IDS)
        self._schema = arrow.schema(self._columns)

    def settings(self) -> dict[str, Any]:
        return {"context_size": self._size}

    def name_of(self, tap: Tap) -> str:
        return hook_name(tap)

    def files(self, shard: int) -> tuple[str, ...]:
        return (f"data-{shard:05d}-of-{len(self.source):05d}.arrow",)

    def records(self, shard: int) -> Iterator[Record]:
        for rows in in_contexts(self.chunks(shard), self._size, self.source.chunk_tokens):
            record: dict[str, np.ndarray] = {
                hook_name(tap): self.converted(tap, values).reshape(-1, self._size, values.shape[1])
                for tap, values in zip(self.source.taps, rows.activations, strict=True)
            }
            yield record | {"token_ids": rows.columns["token_ids"].reshape(-1, self._size)}

    def write(self, shard: int, records: Iterable[Record]) -> None:
        arrow.write_stream(self.folder / self.files(shard)[0], self._schema, map(self._encode, records))

    def _encode(self, record: Record) -> list[arrow.Arrow]:
        lengths = np.full(self.rows(record), self._size)
        encoded = []
        for field, values in zip(self._schema, record.values(), strict=True):
            assert isinstance(values, np.ndarray)
            if field.name == "token_ids":
                encoded.append(arrow.fixed_lists(values))
            else:
                encoded.append(arrow.matrices(values.reshape(-1, values.shape[-1]), lengths))
        return encoded

    @contextmanager
    def reading(self, shard: int) -> Iterator[Take]:
        with closing(arrow.read_stream(self.folder / self.files(shard)[0])) as batches:
            yield lambda _: self._decoded(next(batches, None))

    def _decoded(self, batch: Mapping[str, arrow.Arrow] | None) -> Record | None:
        if batch is None:
            return None
        return {
            name: arrow.flat(values).reshape(len(values), self._size, *_width(self._columns[name]))
            for name, values in batch.items()
        }

    def rows(self, record: Record) -> int:
        return len(record["token_ids"])

    def tokens(self, record: Record) -> int:
        return self.rows(record) * self._size

    def finish(self) -> None:
        if not self.total("rows"):
            raise UsageError(
                f"no shard has {self._size} wanted tokens, so there is no context; give a smaller --context_size"
            )
        files = [name for shard in range(len(self.source)) for name in self.files(shard)]
        arrow.write_index(self.folder, self._columns, files, self.source.digest[:16])

    def describe(self) -> list[str]:
        rows, left = self.total("rows"), self.total("left_out")
        share = left / max(1, left + rows * self._size)
        return [
            f"{rows} contexts of {self._size} tokens; columns {listed(self._columns)}",
            "samples: concatenated and cut, without padding, because SAELens has no mask;"
            f" {left} tokens ({share:.2%}) at the ends of shards do not fill a context and are left out",
            "flags, labels and positions: left out; choose tokens with --exclude and --include, or export to hf",
        ]


def _width(column: arrow.Column) -> tuple[int, ...]:
    return (column.width,) if isinstance(column, arrow.Matrix) else ()


def in_contexts(chunks: Iterable[Rows], size: int, most: int) -> Iterator[Rows]:
    """Yield the tokens in whole contexts of `size`, about `most` tokens at once.

    A rest that does not fill a context is left out.
    """
    step = max(1, most // size) * size
    rest: list[Rows] = []
    for chunk in chunks:
        rows = join([*rest, chunk]) if rest else chunk
        whole = len(rows) // size * size
        for begin in range(0, whole, step):
            yield rows[begin : min(begin + step, whole)]
        rest = [rows[whole:]] if whole < len(rows) else []
