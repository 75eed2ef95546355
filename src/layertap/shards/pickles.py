"""The pickle format: `{layer: [{"sample_idx", "activation", "shape", "text_preview", ...}, ...]}`.

Any Python with numpy, 1 or 2, reads it in three lines and without Layertap (docs/formats.md): an
array is a call of `numpy.ndarray(shape, dtype, buffer)`. numpy's own way of pickling names private
functions, which numpy 1 lacks.

The same samples give the same bytes: the gzip header has neither time nor name, and the pickler
keeps no memo, so it does not matter which objects samples share.

`isal` writes gzip at level 2: some 20 times the speed of the standard library at the same ratio.
Its level 0, and zlib-ng's level 1, make such data larger. Where isal has no wheel (anything but
x86-64 and ARM), zlib's level 1 takes its place, with other bytes; `codec` names which, for the run
fingerprint.

Reading makes nothing but numpy arrays and plain containers of a file, so a hostile one can run
nothing. Callers compare the checksum before that: the unpickler in C may take much memory for bytes
that are damaged. A file that was made to do so, with a checksum that fits, still can.
"""

import gzip
import pickle
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from types import ModuleType
from typing import IO, Any, BinaryIO, cast

import ml_dtypes
import numpy as np

from layertap.core.columns import Norms
from layertap.core.sample import Activation, Sample
from layertap.errors import DamageError
from layertap.shards.tensors import Sink

igzip: ModuleType | None
try:
    from isal import igzip
except ImportError:  # no wheel for this processor
    igzip = None

PROTOCOL = 5

Entry = dict[str, Any]
"""A sample at one layer."""


def codec(*, compress: bool) -> str:
    """What is between the pickle and the file: "none", "isal-2" or "zlib-1"."""
    if not compress:
        return "none"
    return "zlib-1" if igzip is None else "isal-2"


def write_pickle(
    sink: Sink,
    samples: Sequence[Sample],
    layers: Mapping[int, tuple[Sequence[Activation], Sequence[Norms]]],
    dtype: np.dtype,
    *,
    compress: bool,
) -> None:
    """Write what `samples` have at each of the `layers` of a site: activations and norms.

    Activations are widened to `dtype` one at a time, where they are narrower.
    """
    shard = {
        layer: [_entry(*of_sample, dtype) for of_sample in zip(samples, *values, strict=True)]
        for layer, values in layers.items()
    }
    with _compressed(sink, compress=compress) as file:
        _ShardPickler(file).dump(shard)


def _entry(sample: Sample, activation: Activation, norms: Norms, dtype: np.dtype) -> dict[str, object]:
    return {
        "sample_idx": sample.sample_idx,
        "activation": _Pending(activation, dtype),
        "shape": activation.shape,
        "text_preview": sample.text_preview,
        "task_id": sample.task_id,
        "origin": dict(sample.origin),
        "norms": norms,
        **sample.columns,
    }


class _Pending:
    """An activation that is widened only when the pickler reaches it."""

    def __init__(self, activation: Activation, dtype: np.dtype) -> None:
        self.activation = activation
        self.dtype = dtype


class _ShardPickler(pickle.Pickler):
    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, PROTOCOL)
        self.fast = True  # no memo

    def reducer_override(self, obj: Any) -> Any:  # noqa: ANN401, RUF100 - the pickle protocol's own types
        if isinstance(obj, _Pending):
            return _array_call(obj.activation.astype(obj.dtype, copy=False))
        return _array_call(obj) if isinstance(obj, np.ndarray) else NotImplemented


def _array_call(array: np.ndarray) -> tuple[object, ...]:
    """The call that makes `array` again; writable even where a device lent it read-only."""
    own = np.require(array, requirements=["C_CONTIGUOUS", "WRITEABLE"])
    dtype = own.dtype.type if own.dtype == ml_dtypes.bfloat16 else own.dtype.str  # bfloat16 has no name of its own
    return np.ndarray, (own.shape, dtype, pickle.PickleBuffer(own.view(np.uint8).data))


@contextmanager
def _compressed(sink: Sink, *, compress: bool) -> Iterator[IO[bytes]]:
    raw = cast(BinaryIO, sink)
    if not compress:
        yield raw
    elif igzip is None:
        with gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=1, mtime=0) as file:
            yield cast(IO[bytes], file)
    else:
        with igzip.IGzipFile(filename="", fileobj=raw, mode="wb", compresslevel=2, mtime=0) as file:
            yield file


def load_pickle(content: bytes, name: str, columns: Mapping[str, str]) -> dict[int, list[Entry]]:
    """Read the shard `name`, whose samples have these columns, from its content; gzip is
    recognised.

    Raises DamageError, naming the file, where it holds anything else than samples as `write_pickle`
    writes them. `decode.py` finds out whether they are the right ones.
    """
    raw = BytesIO(content)
    try:
        file = (gzip if igzip is None else igzip).open(raw, "rb") if content[:2] == b"\x1f\x8b" else raw
        shard = _ShardUnpickler(file).load()
        if file.read(1):  # asked at the end, gzip compares its own checksum
            raise pickle.UnpicklingError("it goes on behind the shard")
        _require_layers(shard, columns)
    except _UNREADABLE as error:
        raise DamageError(f"{name}: cannot be read as a shard: {str(error) or repr(error)}") from error
    return cast(dict[int, list[Entry]], shard)


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
    struct.error,
)
_BFLOAT16 = "bfloat16"
_DTYPES = {dtype.str: dtype for dtype in map(np.dtype, ("f4", "f2", "i8", "i4", "i2", "i1", "u2", "u1"))} | {
    _BFLOAT16: np.dtype(ml_dtypes.bfloat16)
}


class _ShardUnpickler(pickle.Unpickler):
    """Puts its own, closed function in the place of `numpy.ndarray`, which can make arrays of wild
    pointers.
    """

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
