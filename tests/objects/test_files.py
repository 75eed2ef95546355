import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from interpreter import others_run_during

from layertap.errors import StorageError
from layertap.objects.content import MemoryContent
from layertap.objects.files import (
    TEMPORARY,
    Checksummed,
    atomic_write,
    crc32c_extended,
    file_crc32c,
    remove_leftovers,
)


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_checksum_of_the_customary_nine_digits():
    sink = Checksummed(io.BytesIO())
    sink.write(b"123456789")
    assert sink.crc32c == "e3069283"


@given(st.lists(st.binary(max_size=300)), st.sampled_from([bytes, memoryview, pickle.PickleBuffer, bytearray]))
def test_checksum_and_size_are_those_of_all_that_was_written(chunks, wrap):
    inner = io.BytesIO()
    sink = Checksummed(inner)
    assert [sink.write(wrap(chunk)) for chunk in chunks] == [len(chunk) for chunk in chunks]
    assert inner.getvalue() == b"".join(chunks)
    assert (sink.size, sink.crc32c) == (len(inner.getvalue()), f"{google_crc32c.value(inner.getvalue()):08x}")


def test_other_threads_run_while_a_checksum_is_computed() -> None:
    chunk = bytes(16 << 20)
    assert others_run_during(lambda: crc32c_extended(0, chunk))


@given(st.lists(st.binary(max_size=9), max_size=6), st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40))))
def test_buffers_in_memory_are_one_file(buffers: list[bytes], reads: list[tuple[int, int]]) -> None:
    """Read it like a client that uploads it: only the last read is short, and it seeks back."""
    file, like = MemoryContent(buffers).open(), io.BytesIO(b"".join(buffers))
    assert file.read() == like.read()
    for place, size in reads:
        assert file.seek(place) == like.seek(place)
        assert file.read(size) == like.read(size)
        assert file.tell() == like.tell()
    assert file.seek(0, io.SEEK_END) == like.seek(0, io.SEEK_END)
    assert file.read() == b""


def test_checksum_while_writing_is_that_of_the_file(tmp_path):
    path = tmp_path / "folder" / "is" / "made" / "file"
    with atomic_write(path) as file:
        file.write(b"one")
        file.write(np.arange(5))
    assert path.read_bytes() == b"one" + np.arange(5).tobytes()
    assert {file.crc32c} == {file_crc32c(path, chunk_bytes) for chunk_bytes in (1, 7, 1000, 1 << 22)}
    assert file.size == path.stat().st_size


def test_target_keeps_its_old_content_until_the_block_ends(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with atomic_write(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
        target, temporary = files(tmp_path)
        assert target == "file"
        assert temporary.startswith("file.")
        assert temporary.endswith(TEMPORARY)
    assert path.read_bytes() == b"new"
    assert files(tmp_path) == ["file"]


def test_content_is_synced_before_it_gets_its_name_and_the_folder_afterwards(tmp_path, monkeypatch):
    path, synced, fsync = tmp_path / "file", [], os.fsync

    def watched(descriptor):
        synced.append((os.fstat(descriptor).st_ino, path.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    with atomic_write(path) as file:
        file.write(b"content")
    assert synced == [(path.stat().st_ino, False), (tmp_path.stat().st_ino, True)]


def half_write(path, error):
    with atomic_write(path) as file:
        file.write(b"half")
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, StorageError])
def test_an_exception_inside_leaves_the_old_content_and_no_temporary(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(error, match=r"^said inside$"):
        half_write(path, error("said inside"))
    assert path.read_bytes() == b"old"
    assert files(tmp_path) == ["file"]


FULL = """
import resource, sys
from pathlib import Path
from layertap.errors import StorageError
from layertap.objects.content import MemoryContent
from layertap.objects.files import atomic_write

resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with atomic_write(Path(sys.argv[1])) as file:
        for _ in range(int(sys.argv[2])):
            file.write(bytes(1000))
except StorageError as error:
    print(error)
"""


# Past the limit during a write, and only when what is buffered is flushed at the end.
@pytest.mark.parametrize("kilobytes", [500, 102])
def test_running_out_of_room_leaves_the_old_content_and_no_temporary(tmp_path, kilobytes):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    done = subprocess.run(
        [sys.executable, "-c", FULL, path, str(kilobytes)], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"{path}: cannot be written: File too large.")
    assert "make room" in done.stdout
    assert path.read_bytes() == b"old"
    assert files(tmp_path) == ["file"]


@pytest.mark.parametrize("place", ["file/below", "folder", "n" * 300], ids=["below a file", "a folder", "long name"])
def test_an_impossible_place_is_refused_by_name_and_left_as_it_is(tmp_path, place):
    (tmp_path / "file").write_bytes(b"a file")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="cannot be written") as refused, atomic_write(tmp_path / place):
        pass
    assert str(refused.value).startswith(f"{tmp_path / place}: ")
    assert files(tmp_path) == ["file", "folder"]


def test_leftovers_are_removed_at_any_depth_and_nothing_else_is_and_one_that_stays_is_named(tmp_path):
    (tmp_path / "mlp").mkdir()
    for name in ("metadata.json", "download.partial", f"a{TEMPORARY}", f"mlp/shard_0001.pkl.gz{TEMPORARY}"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert files(tmp_path) == ["download.partial", "metadata.json", "mlp"]
    folder = tmp_path / f"folder{TEMPORARY}"
    folder.mkdir()
    with pytest.raises(StorageError, match="cannot be removed") as refused:
        remove_leftovers(tmp_path)
    assert str(folder) in str(refused.value)
