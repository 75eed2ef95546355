"""Detect how a file is packed from its first bytes, whatever its name, and unpack it.  Object
stores may unpack a `.gz` on the way, and not every packed file has a matching name. Nested packings
are unpacked in turn: a gzip in a zip is read too. A file that holds several files, or no rows, is
refused; the message names its format and says what to do.  A packed file may hold several streams
in sequence, as parallel packers write them. At bytes that do not begin a new stream, Python's own
readers of bzip2 and xz silently stop, and lose everything after them. `_Streams` reads to the end
of the file instead.  Errors of the file itself (a lost connection) are raised by `Stored`'s reader;
every error above it means that the packed data is damaged.
"""

import bz2
import gzip
import io
import lzma
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, Protocol, cast

from layertap.dataset.names import is_hidden, is_named_data, unpacked_name
from layertap.errors import BadTaskError, DatasetError

PARQUET = b"PAR1"
_HEAD_BYTES = 512
_BUFFER_BYTES = 1 << 16
_SHOWN_MEMBERS = 5
_UNPACK = "unpack it and give the folder"
_TABLE = "write it as Parquet or as JSON lines"
_FAILURES = (EOFError, OSError, ValueError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, NotImplementedError)
_REFUSED: tuple[tuple[int, bytes, str, str], ...] = (
    (257, b"ustar", "a tar archive", _UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (0, b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (0, b"\x04\x22\x4d\x18", "packed with lz4", "unpack it"),
    (0, b"\xff\x06\x00\x00sNaPpY", "packed with snappy", "unpack it"),
    (0, b"\x1f\x9d", "packed with compress", "unpack it"),
    (0, b"ARROW1", "an Arrow file", f"{_TABLE}, or give a folder that `datasets` saved as --dataset_name"),
    (0, b"\xff\xff\xff\xff", "an Arrow stream", f"{_TABLE}, or give a folder that `datasets` saved as --dataset_name"),
    (0, b"FEA1", "a Feather file", _TABLE),
    (0, b"ORC", "an ORC file", _TABLE),
    (0, b"Obj\x01", "an Avro file", _TABLE),
    (0, b"PARE", "an encrypted Parquet file", "write it without encryption"),
    (0, b"SQLite format 3\x00", "an SQLite database", "write its table as Parquet or as JSON lines"),
    (0, b"\x93NUMPY", "a NumPy array", "write its rows as JSON lines, token ids under input_ids"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file", _TABLE),
    *((0, bytes((0x80, protocol)), "a pickle", "write it as JSON lines") for protocol in range(2, 6)),
    (0, b"%PDF-", "a PDF", "extract its text and give that"),
)


class Stored(io.RawIOBase):
    """A stored file whose first bytes were read already, even if it can be read only once."""

    def __init__(self, file: BinaryIO, translated: Callable[[], Any]) -> None:
        self._file = file
        self._translated = translated
        with translated():
            self._pending = file.read(_HEAD_BYTES)
        try:
            file.seek(0)
            self._pending, self.can_seek = b"", True
        except (OSError, ValueError):
            self.can_seek = False

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self.can_seek

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with self._translated():
            return self._file.seek(offset, whence)

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]
        with self._translated():
            data = self._pending[: len(buffer)] or self._file.read(len(buffer))
        self._pending = self._pending[len(data) :]
        buffer[: len(data)] = data
        return len(data)


class _Unpacker(Protocol):
    """Unpacks one stream: a `BZ2Decompressor` or an `LZMADecompressor`."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _Streams(io.RawIOBase):
    """The content of all streams of a packed file; anything else after a stream is an error.

    `padding` is the byte that may be between streams, in multiples of four.
    """

    def __init__(self, file: BinaryIO, begin: Callable[[], _Unpacker], padding: bytes) -> None:
        self._file = file
        self._begin = begin
        self._padding = padding
        self._stream = begin()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]
        data = b""
        while not data:
            packed = b""
            if self._stream.eof:
                packed = self._behind_stream()
                if not packed:
                    return 0
                self._stream = self._begin()
            elif self._stream.needs_input:
                packed = self._file.read(_BUFFER_BYTES)
                if not packed:
                    raise EOFError("it ends within a packed stream")
            data = self._stream.decompress(packed, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _behind_stream(self) -> bytes:
        """Return the bytes after the finished stream and its padding; empty at the end of the
        file.
        """
        padded, rest = 0, b""
        packed = self._stream.unused_data or self._file.read(_BUFFER_BYTES)
        while packed and not rest:
            rest = packed.lstrip(self._padding)
            padded += len(packed) - len(rest)
            packed = b"" if rest else self._file.read(_BUFFER_BYTES)
        if padded % 4:
            raise ValueError(f"{padded} bytes of padding after a packed stream, not a multiple of 4")
        return rest


@dataclass(frozen=True)
class Unpacked:
    """The content of a stored file, and its packing."""

    name: str
    """The name without the packing's suffix; for a zip, the name inside it."""
    file: io.BufferedReader
    packing: str | None


def unpack(stored: Stored, path: str, shown: str, closing: ExitStack) -> Unpacked:
    """Open the content of the file at `path`, until `closing` closes it.

    Raises BadTaskError, without the file's name, if it does not hold exactly one data file, and
    DatasetError if it is damaged.
    """
    found = Unpacked(unpacked_name(path), io.BufferedReader(stored, _BUFFER_BYTES), None)
    while True:
        with damage_named(found.packing, shown):
            head = found.file.peek(_HEAD_BYTES)[:_HEAD_BYTES]
            packing = next((it for it in _PACKINGS if head.startswith(it)), None)
            if packing is None:
                _refuse(head)
                return replace(found, file=_seekable(found.file, closing)) if head.startswith(PARQUET) else found
        said, opened = _PACKINGS[packing]
        with damage_named(said, shown):
            file = _seekable(found.file, closing) if said == "zip" else found.file
            inner, content = opened(file, found.name)
        found = Unpacked(inner, closing.enter_context(io.BufferedReader(content, _BUFFER_BYTES)), said)


@contextmanager
def damage_named(packing: str | None, shown: str) -> Iterator[None]:
    """Raise DatasetError for damaged data."""
    try:
        yield
    except _FAILURES as error:
        data = "its data" if packing is None else f"its {packing} data"
        raise DatasetError(f"{shown}: {data} is damaged or cut short; copy the file again ({error})") from error


def _seekable(file: io.BufferedReader, closing: ExitStack) -> io.BufferedReader:
    """Return the file, or a copy on disk if it can be read only once."""
    if file.seekable():
        return file
    copy = closing.enter_context(tempfile.TemporaryFile(prefix="layertap-"))  # noqa: SIM115 - `closing` closes it
    shutil.copyfileobj(file, copy)
    copy.seek(0)
    return cast(io.BufferedReader, copy)


def _refuse(head: bytes) -> None:
    for offset, magic, what, way_out in _REFUSED:
        if head[offset:].startswith(magic):
            raise BadTaskError(f"is {what}, which Layertap does not read: {way_out}")
    if head[8:10] == b'{"' and b"\0" in head[:8]:
        raise BadTaskError("is a safetensors file, which holds tensors, not records")


def _open_gzip(file: BinaryIO, name: str) -> tuple[str, Any]:
    return name, gzip.GzipFile(fileobj=file)


def _open_bz2(file: BinaryIO, name: str) -> tuple[str, Any]:
    return name, _Streams(file, bz2.BZ2Decompressor, padding=b"")


def _open_xz(file: BinaryIO, name: str) -> tuple[str, Any]:
    return name, _Streams(file, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ), padding=b"\0")


def _open_zstd(file: BinaryIO, name: str) -> tuple[str, Any]:
    import pyarrow

    return name, pyarrow.CompressedInputStream(pyarrow.PythonFile(file, "r"), "zstd")


def _open_zip(file: BinaryIO, _name: str) -> tuple[str, Any]:
    """Open the one member that is data; raises BadTaskError if there are several, or none."""
    archive = zipfile.ZipFile(file)
    members = [it for it in archive.infolist() if not it.is_dir() and not is_hidden(it.filename)]
    data = [it for it in members if is_named_data(it.filename)] or members
    if len(data) != 1:
        shown = ", ".join(it.filename for it in data[:_SHOWN_MEMBERS]) + (", ..." if len(data) > _SHOWN_MEMBERS else "")
        held = f"{len(data)} files ({shown})" if data else "no file"
        raise BadTaskError(f"is a zip archive with {held}, but must hold exactly one data file: {_UNPACK}")
    if data[0].flag_bits & 1:
        raise BadTaskError(f"is a zip archive whose {data[0].filename} is encrypted: {_UNPACK}")
    return unpacked_name(data[0].filename), archive.open(data[0])


_PACKINGS: Mapping[bytes, tuple[str, Callable[[BinaryIO, str], tuple[str, Any]]]] = {
    b"\x1f\x8b": ("gzip", _open_gzip),
    b"BZh": ("bzip2", _open_bz2),
    b"\xfd7zXZ\x00": ("xz", _open_xz),
    b"\x28\xb5\x2f\xfd": ("zstd", _open_zstd),
    b"\x50\x2a\x4d\x18": ("zstd", _open_zstd),  # a skippable frame, with which parallel packers begin
    b"PK\x03\x04": ("zip", _open_zip),
    b"PK\x05\x06": ("zip", _open_zip),
}
