"""The pickle format: `{layer: [{"sample_idx", "activation", "shape", "text_preview", ...}, ...]}`.

Any Python with numpy, 1 or 2, reads it in three lines and with no Layertap (docs/formats.md): an array is a call of
`numpy.ndarray(shape, dtype, buffer)`. numpy's own way of pickling names private functions, which numpy 1 lacks.

The same samples give the same bytes: the gzip header carries neither time nor name, and the pickler keeps no memo, so
it does not matter which objects samples share. Nor does the memo then keep every converted array alive.

gzip is written by `isal` at level 2: some 20 times the speed of the standard library at the same ratio. Its level 0,
and zlib-ng's level 1, make such data larger. Where isal has no wheel (anything but x86-64 and ARM), zlib's level 1
stands in, with other bytes; `codec` names which, for the run fingerprint.

Activations are kept as the device gave them (bfloat16 in a bfloat16 run) until they are written, and widened one at a
time.
"""

import gzip
import pickle
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import IO, Any, BinaryIO, cast

import ml_dtypes
import numpy as np

from layertap.core.taps import Site, Tap
from layertap.errors import DamageError
from layertap.objects.files import Checksummed
from layertap.shards.flags import Flags
from layertap.shards.samples import StoredSample

igzip: ModuleType | None
try:
    from isal import igzip
except ImportError:  # no wheel for this processor
    igzip = None

PROTOCOL = 5


def codec(*, compress: bool) -> str:
    """What stands between the pickle and the file: "none", "isal-2" or "zlib-1"."""
    if not compress:
        return "none"
    return "zlib-1" if igzip is None else "isal-2"


def write_pickle(
    sink: Checksummed,
    samples: Sequence[StoredSample],
    layers: Sequence[int],
    site: Site,
    dtype: np.dtype,
    flags: Mapping[Tap, Sequence[Flags]],
    *,
    compress: bool,
) -> None:
    """Write the activations of `samples` at `site` of `layers` as `dtype`, with the `flags` of each sample.

    Raises StorageError where a value does not fit into float16.
    """
    taps = [Tap(layer, site) for layer in layers]
    shard = {tap.layer: [_entry(*pair, tap) for pair in zip(samples, flags[tap], strict=True)] for tap in taps}
    with _compressed(sink, compress=compress) as file:
        _ShardPickler(file, dtype).dump(shard)


@dataclass(frozen=True)
class _Pending:
    """An activation that is converted to the storage dtype only when the pickler reaches it."""

    sample: StoredSample
    tap: Tap


class _ShardPickler(pickle.Pickler):
    def __init__(self, file: IO[bytes], dtype: np.dtype) -> None:
        super().__init__(file, PROTOCOL)
        self.fast = True  # no memo
        self._dtype = dtype

    def reducer_override(self, obj: Any) -> Any:  # noqa: ANN401, RUF100 - the pickle protocol's own types
        if isinstance(obj, _Pending):
            return _array_call(obj.sample.stored(obj.tap, self._dtype))
        return _array_call(obj) if isinstance(obj, np.ndarray) else NotImplemented


def _array_call(array: np.ndarray) -> tuple[object, ...]:
    """The call that makes `array` again; writable even where a device lent it read-only."""
    own = np.require(array, requirements=["C_CONTIGUOUS", "WRITEABLE"])
    dtype = own.dtype.type if own.dtype == ml_dtypes.bfloat16 else own.dtype.str  # bfloat16 has no name of its own
    return np.ndarray, (own.shape, dtype, pickle.PickleBuffer(own.view(np.uint8).data))


def _entry(sample: StoredSample, flags: Flags, tap: Tap) -> dict[str, object]:
    return {
        "sample_idx": sample.sample_idx,
        "activation": _Pending(sample, tap),
        "shape": sample.activations[tap].shape,
        "text_preview": sample.text_preview,
        "task_id": sample.task_id,
        "token_ids": sample.token_ids,
        "origin": dict(sample.origin),
        "flags": flags,
    }


@contextmanager
def _compressed(sink: Checksummed, *, compress: bool) -> Iterator[IO[bytes]]:
    raw = cast(BinaryIO, sink)
    if not compress:
        yield raw
    elif igzip is None:
        with gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=1, mtime=0) as file:
            yield cast(IO[bytes], file)
    else:
        with igzip.IGzipFile(filename="", fileobj=raw, mode="wb", compresslevel=2, mtime=0) as file:
            yield file


def read_pickle(path: Path) -> dict[int, list[dict[str, Any]]]:
    """Read the shard at `path`; see `load_pickle`."""
    try:
        with path.open("rb") as file:
            return load_pickle(file, str(path))
    except OSError as error:
        raise DamageError(f"{path}: cannot be read as a shard: {error}") from error


def load_pickle(raw: BinaryIO, name: str) -> dict[int, list[dict[str, Any]]]:
    """Read the shard `name` from a file that can be sought in; gzip is recognised by its magic bytes.

    Nothing but numpy arrays and plain containers is ever made of the file, so that a hostile one can run nothing.
    Raises DamageError, naming the file, where it asks for anything else, ends early, goes on behind the shard, or
    holds no samples as `write_pickle` writes them; whether they are the right ones is for `verify` to find out.
    """
    try:
        is_gzip = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        file = (gzip if igzip is None else igzip).open(raw, "rb") if is_gzip else raw
        shard = _ShardUnpickler(file).load()
        if file.read(1):  # asked at the end, gzip compares its own checksum
            raise pickle.UnpicklingError("it goes on behind the shard")
        _require_layers(shard)
    except _UNREADABLE as error:
        raise DamageError(f"{name}: cannot be read as a shard: {str(error) or repr(error)}") from error
    return cast(dict[int, list[dict[str, Any]]], shard)


# What damaged bytes make a decompressor, the unpickler and numpy raise.
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
    AssertionError,
    struct.error,
)
_BFLOAT16 = "bfloat16"
_DTYPES = {dtype.str: dtype for dtype in map(np.dtype, ("f4", "f2", "i4", "u1"))} | {
    _BFLOAT16: np.dtype(ml_dtypes.bfloat16)
}


_PythonUnpickler: Any = pickle._Unpickler
_AT_ONCE = 1 << 24
_BUFFER_OPCODE = pickle.BYTEARRAY8[0]


def _read_exactly(file: IO[bytes], size: int) -> bytearray:
    """So many bytes, at the cost of memory for those that are there: `size` may be a damaged number."""
    buffer, filled = bytearray(min(size, _AT_ONCE)), 0
    while filled < size:
        if filled == len(buffer):
            buffer += bytes(min(filled, size - filled))
        count = file.readinto(memoryview(buffer)[filled:])  # type: ignore[attr-defined]  # every binary file has it
        if not count:
            raise EOFError("it ends in the middle of an array")
        filled += count
    return buffer


class _ShardUnpickler(_PythonUnpickler):  # type: ignore[misc]  # its insides are not described
    """Puts its own, closed function in the place of `numpy.ndarray`, which can make arrays of wild pointers.

    The unpickler is the one in Python: the one in C makes a table of as many places as a damaged or hostile file says
    (LONG_BINPUT), up to 64 GB. A shard has few opcodes and long buffers; with these read in one go, it is no slower.
    """

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self._file = file
        self._file_read = self._read_what_is_there

    def load(self) -> object:
        try:
            return super().load()
        finally:
            self.__dict__.clear()  # a circle of references: the shard would stay until the garbage collector comes by

    def _read_what_is_there(self, size: int) -> bytes:
        pieces = []
        while size > 0 and (piece := self._file.read(min(size, _AT_ONCE))):
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def _load_buffer(self) -> None:
        size = int.from_bytes(self.read(8), "little")
        among_opcodes = self._unframer.current_frame is not None  # a short one
        buffer = bytearray(self.read(size)) if among_opcodes else _read_exactly(self._file, size)
        if len(buffer) != size:
            raise EOFError("it ends in the middle of an array")
        self.append(buffer)

    dispatch = _PythonUnpickler.dispatch | {_BUFFER_OPCODE: _load_buffer}

    def find_class(self, module: str, name: str) -> object:
        if (module, name) == ("numpy", "ndarray"):
            return self._array
        if (module, name) == ("ml_dtypes", "bfloat16"):
            return _BFLOAT16
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no shard does; it was not made by Layertap")

    def _array(self, shape: tuple[int, ...], dtype: str, data: bytearray) -> np.ndarray:
        return np.frombuffer(data, _DTYPES[dtype]).reshape(shape)


_FIELDS = {
    "sample_idx": int,
    "activation": np.ndarray,
    "shape": tuple,
    "text_preview": str,
    "task_id": str,
    "token_ids": np.ndarray,
    "origin": dict,
    "flags": np.ndarray,
}


def _require_layers(shard: object) -> None:
    if not isinstance(shard, dict):
        raise TypeError(f"it holds a {type(shard).__name__}, not a dict of layers")
    for layer, entries in shard.items():
        if type(layer) is not int or not isinstance(entries, list):
            raise TypeError(f"layer {layer!r} is not a number with a list of samples")
        for number, entry in enumerate(entries):
            _require_entry(entry, f"layer {layer}, entry {number}")


def _require_entry(entry: object, where: str) -> None:
    if not isinstance(entry, dict):
        raise TypeError(f"{where} is a {type(entry).__name__}, not a dict")
    for name, kind in _FIELDS.items():
        if not isinstance(entry.get(name), kind):
            raise TypeError(f"{where}: {name} is missing or not of type {kind.__name__}")
    for name, dtype in (("token_ids", np.int32), ("flags", np.uint8)):
        if entry[name].dtype != dtype or entry[name].ndim != 1:
            raise TypeError(f"{where}: {name} are not one row of {np.dtype(dtype).name}")
