"""The pickle format: `{layer: [{"sample_idx", "activation", "shape", "text_preview", ...}, ...]}`.

Python with numpy 1 or 2 reads it in three lines, without Layertap (docs/formats.md). An array is
stored as a call of `numpy.ndarray(shape, dtype, buffer)`. numpy's own pickles name private
functions, which numpy 1 lacks.

The same samples give the same bytes: the gzip header has neither time nor name, and the pickler
keeps no memo, so it does not matter which objects samples share.

`isal` writes gzip at level 2. It is some 20 times as fast as the standard library at the same
ratio. Its level 0, and zlib-ng's level 1, make such data larger. isal has wheels for x86-64 and
ARM. On other processors zlib's level 1 is used, which gives other bytes; `codec` names the one in
use, for the run fingerprint.

Each mebibyte of the pickle is its own member of the gzip file, so any number of threads gives the
same bytes. gzip, Python's `gzip` and isal read all members as one file. A reader that stops at the
first member gets the first mebibyte and no error. One member of several flushed blocks would also
suit such readers. It costs 6 % of the speed, where members cost 1 %. The files are 0.2 % larger.
Earlier versions wrote one member; a run may hold both.

Reading creates only numpy arrays and plain containers, so a hostile file cannot run code. Callers
compare the checksum first, because the unpickler in C may take much memory for damaged bytes. A
file that was made for that, with a matching checksum, still can.
"""

import gzip
import pickle
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from io import BytesIO
from types import ModuleType
from typing import IO, Any, cast

import ml_dtypes
import numpy as np

from layertap.core.columns import Norms
from layertap.core.sample import Activation, Sample
from layertap.errors import DamageError
from layertap.objects.files import Buffer
from layertap.shards.tensors import Sink
from layertap.shards.threads import InOrder, Threads
from layertap.shards.values import SampleValues, TapValues

igzip: ModuleType | None
try:
    from isal import igzip
except ImportError:  # no wheel for this processor
    igzip = None

PROTOCOL = 5

_MEMBER_BYTES = 1 << 20

Entry = dict[str, Any]
"""A sample at one layer."""


def codec(*, compress: bool) -> str:
    """Return how the pickle is compressed: "none", "isal-2" or "zlib-1"."""
    if not compress:
        return "none"
    return "zlib-1" if igzip is None else "isal-2"


def write_pickle(
    sink: Sink, samples: Sequence[Sample], layers: Mapping[int, TapValues], compressors: Threads | None
) -> None:
    """Write `samples` at each of the `layers` of a site, and take their values layer after layer.

    `compressors` gzip the file; None leaves it uncompressed.
    """
    shard = {
        layer: [_entry(sample, at_layer.width, _Taken(values)) for sample in samples]
        for layer, at_layer in layers.items()
        for values in [iter(at_layer.samples)]
    }
    if compressors is None:
        _ShardPickler(cast(IO[bytes], sink)).dump(shard)
        return
    with closing(_GzipMembers(sink, compressors)) as members:
        _ShardPickler(cast(IO[bytes], members)).dump(shard)
        members.finish()


def _entry(sample: Sample, width: int, values: "_Taken") -> dict[str, object]:
    return {
        "sample_idx": sample.sample_idx,
        "activation": _Pending(values.take_activation),
        "shape": (sample.tokens, width),
        "text_preview": sample.text_preview,
        "task_id": sample.task_id,
        "origin": dict(sample.origin),
        "norms": _Pending(values.take_norms),
        **sample.columns,
    }


class _Taken:
    """A sample's values. The pickler takes them when it reaches them; nothing keeps them."""

    def __init__(self, values: Iterator[SampleValues]) -> None:
        self._values = values
        self._norms: list[Norms] = []

    def take_activation(self) -> Activation:
        taken = next(self._values)
        self._norms.append(taken.norms)
        return taken.activation

    def take_norms(self) -> Norms:
        return self._norms.pop()


@dataclass(frozen=True)
class _Pending:
    """An array that the pickler asks for when it reaches it."""

    take: Callable[[], np.ndarray]


class _ShardPickler(pickle.Pickler):
    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, PROTOCOL)
        self.fast = True  # no memo

    def reducer_override(self, obj: Any) -> Any:  # noqa: ANN401, RUF100 - the pickle protocol's own types
        if isinstance(obj, _Pending):
            return _array_call(obj.take())
        return _array_call(obj) if isinstance(obj, np.ndarray) else NotImplemented


def _array_call(array: np.ndarray) -> tuple[object, ...]:
    """Return the call that makes `array` again. The result is writable even if `array` is not."""
    own = np.require(array, requirements=["C_CONTIGUOUS", "WRITEABLE"])
    dtype = own.dtype.type if own.dtype == ml_dtypes.bfloat16 else own.dtype.str  # numpy has no string for bfloat16
    return np.ndarray, (own.shape, dtype, pickle.PickleBuffer(own.view(np.uint8).data))


class _GzipMembers:
    """A file that threads gzip, one member for each `_MEMBER_BYTES`, and write in order."""

    def __init__(self, sink: Sink, threads: Threads) -> None:
        self._sink = sink
        self._members = InOrder(threads, _gzip)
        self._parts: list[memoryview] = []
        self._room = _MEMBER_BYTES

    def write(self, data: Buffer) -> None:
        """Take `data`, which must not change afterwards."""
        view = memoryview(data).cast("B")
        while len(view) >= self._room:
            self._parts.append(view[: self._room])
            view = view[self._room :]
            self._cut()
        if view:
            self._parts.append(view)
            self._room -= len(view)

    def finish(self) -> None:
        """Write the last member, and all that are still waiting."""
        if self._parts:
            self._cut()
        for member in self._members.rest():
            self._sink.write(member)

    def close(self) -> None:
        """Drop what was not written."""
        self._members.close()

    def _cut(self) -> None:
        for member in self._members.begin(self._parts):
            self._sink.write(member)
        self._parts, self._room = [], _MEMBER_BYTES


def _gzip(parts: Sequence[memoryview]) -> bytes:
    """Compress one member, whose header has neither time nor name."""
    whole = parts[0] if len(parts) == 1 else b"".join(parts)
    if igzip is None:
        return gzip.compress(whole, 1, mtime=0)
    compressed: bytes = igzip.compress(whole, 2, mtime=0)
    return compressed


def load_pickle(content: bytes, name: str, columns: Mapping[str, str]) -> dict[int, list[Entry]]:
    """Read the shard `name`, whose samples have these columns, from its content, gzipped or not.

    Raises DamageError, with the file's name, where the file holds anything but samples as
    `write_pickle` writes them. `pickled_shard.py` checks whether they are the right ones.
    """
    raw = BytesIO(content)
    try:
        file = (gzip if igzip is None else igzip).open(raw, "rb") if content[:2] == b"\x1f\x8b" else raw
        shard = _ShardUnpickler(file).load()
        if file.read(1):  # a read at the end makes gzip compare its own checksum
            raise pickle.UnpicklingError("it has more bytes after the shard")
        _require_layers(shard, columns)
    except _UNREADABLE as error:
        raise DamageError(f"{name}: cannot be read as a shard: {str(error) or repr(error)}") from error
    return cast(dict[int, list[Entry]], shard)


# What a decompressor, the unpickler and numpy raise for damaged bytes.
_UNREADABLE = (
    pickle.UnpicklingError,
    zlib.error if igzip is None else igzip.igzip_lib.IsalError,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    OverflowError,
    MemoryError,
    RecursionError,
    struct.error,
)
_BFLOAT16 = "bfloat16"
_DTYPES = {dtype.str: dtype for dtype in map(np.dtype, ("f4", "f2", "i8", "i4", "i2", "i1", "u2", "u1"))} | {
    _BFLOAT16: np.dtype(ml_dtypes.bfloat16)
}


class _ShardUnpickler(pickle.Unpickler):
    """Replaces `numpy.ndarray`, which can make arrays of wild pointers, by a safe function."""

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 - the pickle protocol's own types
        if (module, name) == ("numpy", "ndarray"):
            return _make_array
        if (module, name) == ("ml_dtypes", "bfloat16"):
            return _BFLOAT16
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no shard does; it was not made by Layertap")


def _make_array(shape: tuple[int, ...], dtype: str, data: bytearray) -> np.ndarray:
    return np.frombuffer(data, _DTYPES[dtype]).reshape(shape)


_FIELDS = {
    "sample_idx": int,
    "activation": np.ndarray,
    "shape": tuple,
    "text_preview": str,
    "task_id": str,
    "origin": dict,
}


def _require_layers(shard: object, columns: Mapping[str, str]) -> None:
    if not isinstance(shard, dict):
        raise TypeError(f"it holds a {type(shard).__name__}, not a dict of layers")
    for layer, entries in shard.items():
        if type(layer) is not int or not isinstance(entries, list):
            raise TypeError(f"layer {layer!r} is not a number with a list of samples")
        for number, entry in enumerate(entries):
            _require_entry(entry, columns, f"layer {layer}, entry {number}")


def _require_entry(entry: object, columns: Mapping[str, str], where: str) -> None:
    if not isinstance(entry, dict):
        raise TypeError(f"{where} is a {type(entry).__name__}, not a dict")
    for name, kind in _FIELDS.items():
        if not isinstance(entry.get(name), kind):
            raise TypeError(f"{where}: {name} is missing or not of type {kind.__name__}")
    for name, dtype in columns.items():
        values = entry.get(name)
        if not isinstance(values, np.ndarray) or values.dtype.name != dtype or values.shape != entry["token_ids"].shape:
            raise TypeError(f"{where}: {name} is missing or not one {dtype} a token")
