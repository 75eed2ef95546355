"""safetensors files, written as a stream and aligned so that they can be mapped into memory.

The safetensors library writes tensors that are whole in memory, and begins the data wherever its
header ends. Here the header is padded with spaces, which JSON allows, until the data begins at a
multiple of `ALIGNMENT` in the file. So the first tensor can be mapped and passed to any framework
without a copy. All sizes are known before the first byte. So values are written in pieces, and no
tensor is ever whole in memory. Any safetensors reader can read the result.

Reading trusts nothing in a file. `verify` has the whole file and uses `parse_tensors`. Code that
reads parts of a file, also from a bucket, uses `parse_layout`.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from operator import index as exact_int
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from layertap.core.strict_json import dump_json
from layertap.errors import DamageError, StorageError

ALIGNMENT = 64
MAX_HEADER_BYTES = 100_000_000
"""The longest header that the safetensors library reads."""

DTYPES = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "I8": np.dtype("i1"),
    "I16": np.dtype("<i2"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "U8": np.dtype("u1"),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LENGTH_BYTES = 8


class Sink(Protocol):
    """Where bytes go: a file, or an object that collects them in memory."""

    def write(self, data: Any, /) -> Any:  # noqa: ANN401 - any contiguous buffer; the result is ignored
        """Take `data`, which must not change afterwards."""


@dataclass(frozen=True)
class TensorStream:
    """A tensor to write. Its values come in pieces, in memory order."""

    dtype: np.dtype
    shape: tuple[int, ...]
    pieces: Iterable[np.ndarray]

    @classmethod
    def of(cls, array: np.ndarray) -> "TensorStream":
        """Make a stream of an array that is whole in memory."""
        return cls(array.dtype, array.shape, (array,))

    @classmethod
    def joined(cls, parts: Sequence[np.ndarray]) -> "TensorStream":
        """Make one tensor of parts that follow each other along the first axis."""
        return cls(parts[0].dtype, (sum(map(len, parts)), *parts[0].shape[1:]), parts)

    @property
    def bytes(self) -> int:
        """Its size in the file."""
        return prod(self.shape) * self.dtype.itemsize


def write_tensors(sink: Sink, tensors: Mapping[str, TensorStream], metadata: Mapping[str, str]) -> None:
    """Write `tensors` in their order, and align the first one.

    Raises StorageError where the header would be too large.
    """
    sink.write(_header(tensors, metadata))
    for tensor in tensors.values():
        for piece in tensor.pieces:
            sink.write(np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data)


def _header(tensors: Mapping[str, TensorStream], metadata: Mapping[str, str]) -> bytes:
    described: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.bytes
        shape = list(tensor.shape)
        described[name] = {"dtype": _NAMES[tensor.dtype], "shape": shape, "data_offsets": [begin, end]}
    text = dump_json(described).encode("ascii")
    text += b" " * (-(_LENGTH_BYTES + len(text)) % ALIGNMENT)
    if len(text) > MAX_HEADER_BYTES:
        raise StorageError(
            f"the header of a safetensors shard would have {len(text)} bytes, but readers accept at most"
            f" {MAX_HEADER_BYTES}: it lists too many samples; lower --shard_size_gb"
        )
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


@dataclass(frozen=True)
class Place:
    """Where a tensor is in a file."""

    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    """Its first byte, counted from the beginning of the file."""


@dataclass(frozen=True, eq=False)
class TensorLayout:
    """The header of a safetensors file: all that is needed to read parts of the file."""

    metadata: Mapping[str, str]
    places: Mapping[str, Place]
    """By name, in the file's order."""
    data_start: int
    """The byte where the first tensor begins."""


@dataclass(frozen=True, eq=False)
class TensorFile:
    """A safetensors file in memory: views of its bytes, by name, in the file's order."""

    metadata: Mapping[str, str]
    tensors: Mapping[str, np.ndarray]
    data_start: int
    """The byte where the first tensor begins."""


def parse_tensors(content: bytes, name: str) -> TensorFile:
    """Read the file `name` from its `content`, without a copy.

    As the safetensors specification demands, tensors must fill the file without gap or overlap.
    Raises DamageError for anything else.
    """
    layout = parse_layout(content[: data_start(content, len(content), name)], len(content), name)
    tensors = {
        key: np.frombuffer(content, place.dtype, prod(place.shape), place.start).reshape(place.shape)
        for key, place in layout.places.items()
    }
    return TensorFile(layout.metadata, tensors, layout.data_start)


def data_start(first: bytes, size: int, name: str) -> int:
    """Return where the data begins in a file of `size` bytes, from its `first` eight bytes or more.

    Raises DamageError where the header would not fit into the file.
    """
    length = int.from_bytes(first[:_LENGTH_BYTES], "little")
    if not 0 < length <= MAX_HEADER_BYTES or _LENGTH_BYTES + length > size:
        raise DamageError(
            f"{name}: is not a whole safetensors file: its header would have {length} bytes, the file has {size}"
        )
    return _LENGTH_BYTES + length


def parse_layout(head: bytes, size: int, name: str) -> TensorLayout:
    """Read the layout of a file of `size` bytes from its `head`: all bytes before the data.

    Raises DamageError where the tensors do not fill a file of that size.
    """
    try:
        return _parse(head, size)
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError) as error:
        raise DamageError(f"{name}: is not a whole safetensors file: {str(error) or repr(error)}") from error


def _parse(head: bytes, size: int) -> TensorLayout:
    start = len(head)
    header = json.loads(head[_LENGTH_BYTES:])
    metadata = header.pop("__metadata__", {})
    if not all(isinstance(value, str) for value in metadata.values()):
        raise TypeError("__metadata__ holds more than strings")
    end, places = 0, {}
    for name, told in sorted(header.items(), key=lambda item: tuple(item[1]["data_offsets"])):
        dtype, shape = DTYPES[told["dtype"]], tuple(map(exact_int, told["shape"]))
        begin, end_before = told["data_offsets"][0], end
        end = told["data_offsets"][1]
        if begin != end_before or end - begin != prod(shape) * dtype.itemsize or min(shape, default=0) < 0:
            raise ValueError(f"tensor {name} {told['dtype']}{list(shape)} does not fit at {told['data_offsets']}")
        places[name] = Place(dtype, shape, start + begin)
    if start + end != size:
        raise ValueError(f"its tensors end at {start + end}, the file has {size} bytes")
    return TensorLayout(metadata, places, start)
