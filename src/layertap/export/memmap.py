"""`--to memmap`: plain arrays on disk, including bfloat16, in the layout of dictionary_learning's
ActivationCache.

    layer_12_out/shard_0.memmap    a tap's values in a shard, [tokens, width] in C order, no header
    layer_12_out/shard_0.meta      {"shape": [tokens, width], "dtype": "torch.bfloat16"}
    layer_12_out/config.json       the number of shards and of tokens
    columns/shard_0.npz            token_ids, positions, flags, labels, and the sample of each token
    tokens.pt                      all token ids, as that cache needs them: a torch file, int64

`np.memmap(path, dtype, "r", shape=shape)` reads a shard. numpy has no bfloat16: map it as `int16`
and view it as `ml_dtypes.bfloat16` or torch.bfloat16. A shard without wanted tokens has no file,
because an empty file cannot be mapped. So there may be fewer shards than in the run.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from layertap.core.strict_json import dump_json
from layertap.core.taps import Tap
from layertap.errors import DamageError, UsageError
from layertap.export.form import Form, Record, Take, listed
from layertap.export.names import submodule_name
from layertap.export.torch_file import write_int64
from layertap.objects.files import atomic_write

_SAMPLE = "sample"


class MemmapForm(Form):
    """Raw arrays, one per tap and shard."""

    def name_of(self, tap: Tap) -> str:
        return submodule_name(tap)

    def files(self, shard: int) -> tuple[str, ...]:
        if shard < len(self.parts) and not self.parts[shard]["tokens"]:
            return ()
        number = self._number(shard)
        own = (f"{name}/shard_{number}.{ending}" for name in self._widths for ending in ("memmap", "meta"))
        return (*own, f"columns/shard_{number}.npz")

    def records(self, shard: int) -> Iterator[Record]:
        for rows in self.chunks(shard):
            if len(rows):
                columns = {name: rows.columns[name] for name in self.source.columns}
                taps = zip(self.source.taps, rows.activations, strict=True)
                values = {submodule_name(tap): self.converted(tap, own) for tap, own in taps}
                yield {**values, **columns, _SAMPLE: rows.samples.astype(np.int64)}

    def write(self, shard: int, records: Iterable[Record]) -> None:
        coming = iter(records)
        first = next(coming, None)
        if first is not None:
            self._write(self._number(shard), first, coming)

    def _write(self, number: int, first: Record, others: Iterator[Record]) -> None:
        columns: dict[str, list[np.ndarray]] = {}
        with ExitStack() as stack:
            sinks = {name: stack.enter_context(atomic_write(self._array(name, number))) for name in self._widths}
            record: Record | None = first
            while record is not None:
                for name, values in record.items():
                    assert isinstance(values, np.ndarray)
                    if name in sinks:
                        sinks[name].write(np.ascontiguousarray(values).view(np.uint8).data)
                    else:
                        columns.setdefault(name, []).append(values)
                record = next(others, None)
        tokens = sum(map(len, columns[_SAMPLE]))
        for name, width in self._widths.items():
            meta = {"shape": [tokens, width], "dtype": f"torch.{self.dtype.name}"}
            _write_json(self._array(name, number).with_suffix(".meta"), meta)
        _write_columns(self._columns_file(number), {name: np.concatenate(parts) for name, parts in columns.items()})

    @contextmanager
    def reading(self, shard: int) -> Iterator[Take]:
        if not self.files(shard):
            yield lambda _: None
            return
        number, done = self._number(shard), 0
        columns = self._read_columns(number)
        with ExitStack() as stack:
            files = {name: stack.enter_context(self._array(name, number).open("rb")) for name in self._widths}

            def take(like: Record | None) -> Record | None:
                nonlocal done
                if like is None:
                    return {} if any(file.read(1) for file in files.values()) else None
                length = self.tokens(like)
                values = {name: self._read(file, length, self._widths[name]) for name, file in files.items()}
                done += length
                return {**values, **{name: column[done - length : done] for name, column in columns.items()}}

            yield take

    def _read(self, file: BinaryIO, tokens: int, width: int) -> np.ndarray:
        content = file.read(tokens * width * self.dtype.itemsize)
        if len(content) % (width * self.dtype.itemsize):
            raise DamageError(f"{file.name}: ends within a token")
        return np.frombuffer(content, np.uint8).view(self.dtype).reshape(-1, width)

    def rows(self, record: Record) -> int:
        return self.tokens(record)

    def tokens(self, record: Record) -> int:
        return len(record[_SAMPLE])

    def finish(self) -> None:
        if not self.total("tokens"):
            raise UsageError("no token is wanted; choose other tokens with --exclude and --include")
        shards = self._number(len(self.parts))
        for name, width in self._widths.items():
            _write_json(self.folder / name / "config.json", self._config(name, width, shards))
        ids = (self._read_columns(number)["token_ids"].astype(np.int64) for number in range(shards))
        write_int64(self.folder / "tokens.pt", ids, self.total("tokens"))

    def _config(self, name: str, width: int, shards: int) -> dict[str, Any]:
        """Return the keys of that cache's own config; settings of its own extraction are null."""
        return {
            "batch_size": None,
            "context_len": None,
            "shard_size": max(part["tokens"] for part in self.parts),
            "d_model": width,
            "shuffle_shards": False,
            "io": name.rpartition("_")[2],
            "total_size": self.total("tokens"),
            "shard_count": shards,
            "store_tokens": True,
            "store_sequence_ranges": False,
            "dtype": f"torch.{self.dtype.name}",
        }

    def describe(self) -> list[str]:
        return [
            f"{self.total('tokens')} tokens in {self._number(len(self.parts))} shards; folders {listed(self._widths)}",
            "task, origin and text of samples: left out; `sample` in columns/*.npz gives the sample of each token",
        ]

    @property
    def _widths(self) -> Mapping[str, int]:
        return {submodule_name(tap): width for tap, width in self.source.widths.items()}

    def _number(self, shard: int) -> int:
        """Return how many shards before this one have tokens."""
        return sum(part["tokens"] > 0 for part in self.parts[:shard])

    def _array(self, name: str, number: int) -> Path:
        return self.folder / name / f"shard_{number}.memmap"

    def _columns_file(self, number: int) -> Path:
        return self.folder / "columns" / f"shard_{number}.npz"

    def _read_columns(self, number: int) -> dict[str, np.ndarray]:
        path = self._columns_file(number)
        try:
            with np.load(path) as content:
                return dict(content)
        except (OSError, ValueError) as error:
            raise DamageError(f"{path}: cannot be read: {error}") from error


def _write_columns(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    content = BytesIO()
    np.savez(content, **columns)  # type: ignore[arg-type]  # times of 1980: the same arrays are the same bytes
    with atomic_write(path) as sink:
        sink.write(content.getvalue())


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with atomic_write(path) as sink:
        sink.write(dump_json(content).encode())
