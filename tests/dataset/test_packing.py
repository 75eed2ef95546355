"""Every packing is recognised by its content, and anything but a packing of one file is named."""

import bz2
import gzip
import io
import json
import lzma
import sqlite3
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given
from hypothesis import strategies as st

from layertap.core.records import Document
from layertap.dataset import read_records
from layertap.errors import DatasetError

_ZSTD = pyarrow.Codec("zstd")
_TWO_ROWS = b'{"text": "one"}\n{"text": "two"}\n'
_SKIPPED = b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc"  # a frame without content


def _zstd(data: bytes) -> bytes:
    return bytes(_ZSTD.compress(data, asbytes=True))


def _zipped(data: bytes, name: str = "rows.jsonl", method: int = zipfile.ZIP_DEFLATED, **others: bytes) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", method) as archive:
        archive.writestr(name, data)
        for other, content in others.items():
            archive.writestr(other, content)
    return sink.getvalue()


def _parquet(data: bytes) -> bytes:
    import pyarrow.parquet

    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([json.loads(row) for row in data.splitlines()]), sink)
    return sink.getvalue()


PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "gzip, two members": lambda data: gzip.compress(data[:10]) + gzip.compress(data[10:]),
    "bzip2": bz2.compress,
    "bzip2, two streams": lambda data: bz2.compress(data[:10]) + bz2.compress(data[10:]),
    "xz": lzma.compress,
    "xz, three streams": lambda data: b"".join(
        lzma.compress(part) + bytes(padding)
        for part, padding in ((data[:10], 4), (b"", 0), (data[10:], 2 * io.DEFAULT_BUFFER_SIZE * 16))
    ),
    "zstd": _zstd,
    "zstd, two frames": lambda data: _SKIPPED + _zstd(data[:10]) + _SKIPPED + _zstd(data[10:]),
    "zip": _zipped,
    "zip, stored": lambda data: _zipped(data, method=zipfile.ZIP_STORED),
    "zip, with companions": lambda data: _zipped(
        data, **{"README.txt": b"x", "__MACOSX/._rows.jsonl": b"x", ".hidden.json": b"x", "notes.md": b"x"}
    ),
    "zstd in zip": lambda data: _zipped(_zstd(data), "rows.jsonl.zst"),
    "parquet": _parquet,
    "parquet in gzip": lambda data: gzip.compress(_parquet(data)),
}


def _read(path: Path) -> list[str]:
    return [record.text for record in read_records(str(path))]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows", "rows.json.gz"])
@pytest.mark.parametrize("packing", PACKINGS)
def test_a_packing_is_known_by_its_content(tmp_path: Path, packing: str, name: str) -> None:
    (tmp_path / name).write_bytes(PACKINGS[packing](_TWO_ROWS))
    assert _read(tmp_path / name) == ["one", "two"]


@pytest.mark.parametrize("packing", PACKINGS)
@given(st.lists(st.text(min_size=1), min_size=1, max_size=30), st.integers(0, 400))
def test_texts_come_back_equal(
    tmp_path_factory: pytest.TempPathFactory, packing: str, texts: list[str], more: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "packed.jsonl"
    texts = [*texts, "x" * more * 100 + "y"]
    path.write_bytes(PACKINGS[packing]("".join(json.dumps({"text": text}) + "\n" for text in texts).encode()))
    assert _read(path) == texts


class _Once(io.BytesIO):
    """A file that can only be read from its beginning to its end, like a web page."""

    def seek(self, *_: int) -> int:
        raise ValueError("Cannot seek streaming HTTP file")


@pytest.mark.parametrize("packing", ["zip", "parquet", "zstd", "zip, stored"])
def test_what_can_be_read_only_once_is_read_all_the_same(packing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = PACKINGS[packing](_TWO_ROWS)
    monkeypatch.setattr(LocalFileSystem, "open", lambda *_: _Once(data))
    assert _read(Path("/nowhere/rows.jsonl")) == ["one", "two"]


@pytest.mark.parametrize("packing", ["gzip", "bzip2", "xz", "zstd", "zip", "parquet"])
def test_what_is_cut_short_or_changed_says_so(tmp_path: Path, packing: str) -> None:
    data = "".join(json.dumps({"text": f"{number * 7919 % 10007}"}) + "\n" for number in range(2000)).encode()
    packed = PACKINGS[packing](data)
    for broken in (packed[:-12], packed[: len(packed) // 2], packed[:40] + bytes(40) + packed[80:]):
        (tmp_path / "a.jsonl").write_bytes(broken)
        named = packing if packing != "parquet" else "Parquet"
        with pytest.raises(
            DatasetError, match=rf"a\.jsonl: its {named} data is damaged or cut short; copy the file again"
        ):
            _read(tmp_path / "a.jsonl")


@pytest.mark.parametrize("junk", [bytes(10), bytes(3), b"X", b"\0\0\0\0X", b"BZ", b"BZh9", b"\xfd7zXZ"])
@pytest.mark.parametrize(("packing", "pack"), [("bzip2", bz2.compress), ("xz", lzma.compress)])
def test_what_follows_a_stream_and_is_none_is_not_passed_over(
    tmp_path: Path, packing: str, pack: Callable[[bytes], bytes], junk: bytes
) -> None:
    """Python's own readers mistake it for the end, and silently lose the second row."""
    for behind in (pack(_TWO_ROWS[16:]), b""):
        (tmp_path / "a.jsonl").write_bytes(pack(_TWO_ROWS[:16]) + junk + behind)
        with pytest.raises(DatasetError, match=rf"a\.jsonl: its {packing} data is damaged or cut short"):
            _read(tmp_path / "a.jsonl")


def _tar() -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.json"))
    return sink.getvalue()


def _arrow(writer: Callable[..., Any]) -> bytes:
    sink = io.BytesIO()
    table = pyarrow.table({"text": ["x"]})
    with writer(sink, table.schema) as opened:
        opened.write_table(table)
    return sink.getvalue()


def _sqlite() -> bytes:
    with sqlite3.connect(":memory:") as base:
        base.execute("create table t (text)")
        data = base.serialize()
    base.close()
    return data


def _npy() -> bytes:
    sink = io.BytesIO()
    np.save(sink, np.arange(3))
    return sink.getvalue()


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (_tar(), "is a tar archive, which Layertap does not read: unpack it and give the folder"),
        (gzip.compress(_tar()), "is a tar archive"),
        (b"7z\xbc\xaf\x27\x1c\x00", "is a 7z archive"),
        (_arrow(pyarrow.ipc.new_file), "is an Arrow file"),
        (_arrow(pyarrow.ipc.new_stream), "is an Arrow stream, .*: write it as Parquet"),
        (_sqlite(), "is an SQLite database"),
        (_npy(), "is a NumPy array"),
        (b"\x80\x04\x95", "is a pickle, .*: write it as JSON lines"),
        (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
        (b"\x10\0\0\0\0\0\0\0" + b'{"a":{}}', "is a safetensors file"),
        (
            _zipped(b"{}", "a.json", **{"b.json": b"{}"}),
            r"is a zip archive with 2 files \(a.json, b.json\), but must",
        ),
        (_zipped(b"x", "a.npy", **{"b.npy": b"x"}), r"is a zip archive with 2 files \(a.npy, b.npy\)"),
        (_zipped(b"x", "a/"), "is a zip archive with no file"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # archives tell the time at which they were made
)
def test_other_containers_are_named_with_the_way_out(tmp_path: Path, data: bytes, complaint: str) -> None:
    (tmp_path / "tasks.jsonl").write_bytes(data)
    with pytest.raises(DatasetError, match=rf"tasks\.jsonl: {complaint}"):
        _read(tmp_path / "tasks.jsonl")


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    data = bytearray(_zipped(_TWO_ROWS))
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(DatasetError, match=r"a\.zip: is a zip archive whose rows\.jsonl is encrypted"):
        _read(tmp_path / "a.zip")


def test_a_file_in_a_zip_is_named_by_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "all.zip").write_bytes(_zipped(b'{"text": "one"}', "folder/first.json"))
    assert list(read_records(str(tmp_path / "all.zip"))) == [Document("first", "one")]


def test_a_text_file_is_a_document_or_a_document_a_line(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes("\ufeffJust {some} lines.\r\n\n And another.".encode())
    assert list(read_records(str(path))) == [Document("notes", "Just {some} lines.\r\n\n And another.")]
    by_line = [Document("text_00000000", "Just {some} lines."), Document("text_00000001", " And another.")]
    assert list(read_records(str(path), dataset_format="txt_lines")) == by_line
    (tmp_path / "notes.txt.xz").write_bytes(lzma.compress(path.read_bytes()))
    assert list(read_records(str(tmp_path / "notes.txt.xz"))) == list(read_records(str(path)))
    (tmp_path / "plain").write_bytes(path.read_bytes())
    assert list(read_records(str(tmp_path / "plain"), dataset_format="txt")) == [
        Document("plain", "Just {some} lines.\r\n\n And another.")
    ]


def test_json_lines_in_a_text_file_are_rows(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\n" + _TWO_ROWS[:16])
    assert _read(tmp_path / "a.txt") == ["one"]
    (tmp_path / "b.txt").write_bytes(b'{"no": "row"}\n' + _TWO_ROWS)
    assert _read(tmp_path / "b.txt") == ['{"no": "row"}\n' + _TWO_ROWS.decode()]


@pytest.mark.parametrize(("data", "reason"), [(b"\xff\xfe", "is not UTF-8 text"), (b"", "'text' is empty")])
def test_a_text_file_without_text_says_so(tmp_path: Path, data: bytes, reason: str) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    try:
        said = str(next(read_records(str(tmp_path / "a.txt"))))
    except DatasetError as error:
        said = str(error)
    assert reason in said
