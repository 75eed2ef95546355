"""Write a file that `torch.load` reads, without torch: one int64 tensor with one dimension.

Such a file is a zip archive with the raw bytes of the tensor, and a pickle that describes them. The
pickle is written here opcode by opcode. It uses the same names as torch's own files, so
`torch.load(weights_only=True)` accepts it.
"""

import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from layertap.objects.files import atomic_write


def write_int64(path: Path, parts: Iterable[np.ndarray], length: int) -> None:
    """Write these parts one after another, `length` numbers in all; raises StorageError."""
    with atomic_write(path) as sink, zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:  # type: ignore[call-overload]
        archive.writestr(_entry("data.pkl", 0), _pickle(length))
        archive.writestr(_entry("byteorder", 0), b"little")
        with archive.open(_entry("data/0", length * 8), "w") as file:
            for part in parts:
                file.write(np.ascontiguousarray(part, "<i8").view(np.uint8).data)
        archive.writestr(_entry("version", 0), b"3\n")


def _entry(name: str, size: int) -> zipfile.ZipInfo:
    """Make an entry dated 1980, so that equal numbers give equal bytes."""
    entry = zipfile.ZipInfo(f"archive/{name}")
    entry.file_size = size
    return entry


def _pickle(length: int) -> bytes:
    """Pickle `_rebuild_tensor_v2(storage, 0, (length,), (1,), False, OrderedDict())`, protocol
    2.
    """
    number = b"\x8a\x08" + length.to_bytes(8, "little")
    storage = b"(" + _text("storage") + b"ctorch\nLongStorage\n" + _text("0") + _text("cpu") + number + b"tQ"
    arguments = storage + b"K\x00" + number + b"\x85" + b"K\x01\x85" + b"\x89" + b"ccollections\nOrderedDict\n)R"
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR."


def _text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()
