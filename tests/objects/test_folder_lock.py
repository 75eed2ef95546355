"""One process for each folder of a machine, and none is left behind where nothing was stored."""

import errno
import fcntl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from holders import end, holder, kill

from layertap.errors import StorageError, UsageError
from layertap.objects.folder_lock import exclusive


def test_a_second_process_is_refused_a_folder_while_the_first_lives(tmp_path: Path) -> None:
    with holder(tmp_path) as first:
        with pytest.raises(StorageError, match="another run is writing here") as refused, exclusive(tmp_path):
            pytest.fail("two processes hold one folder")
        assert str(refused.value).startswith(f"{tmp_path}: ")
        assert first.poll() is None
        with exclusive(tmp_path / "other"):
            assert (tmp_path / "other").is_dir()


@pytest.mark.parametrize("leave", [kill, end])
def test_a_process_that_is_gone_holds_no_folder(tmp_path: Path, leave) -> None:
    with holder(tmp_path) as first:
        leave(first)
        with exclusive(tmp_path):
            pass


def test_one_process_does_not_hold_a_folder_twice(tmp_path: Path) -> None:
    with exclusive(tmp_path), pytest.raises(StorageError, match="another run"), exclusive(tmp_path):
        pytest.fail("held twice")


@pytest.mark.parametrize("error", [ValueError, BlockingIOError, OSError])
def test_an_exception_inside_passes_unchanged_and_the_folder_is_free_again(tmp_path: Path, error) -> None:
    with pytest.raises(error, match=r"^said inside$"), exclusive(tmp_path):
        raise error("said inside")
    with exclusive(tmp_path):
        pass


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    for place in (path, path / "below"):
        with pytest.raises(UsageError, match="is a file, or is inside one"), exclusive(place):
            pytest.fail("a file is no folder")


def test_a_file_system_without_locks_is_named_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(_descriptor, _operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(StorageError, match="cannot be locked: No locks available"), exclusive(tmp_path):
        pytest.fail("not locked")


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def refused_in(folder: Path) -> None:
    """A run that is refused while it holds the folder."""
    with pytest.raises(ValueError, match="refused"), exclusive(folder):
        raise ValueError("refused")


def test_a_run_that_stored_nothing_leaves_no_folder_that_it_made(tmp_path: Path) -> None:
    refused_in(tmp_path / "runs" / "first" / "out")
    assert files(tmp_path) == []


def test_a_folder_that_was_there_stays_and_so_do_those_above_it(tmp_path: Path) -> None:
    (tmp_path / "runs" / "empty").mkdir(parents=True)
    refused_in(tmp_path / "runs" / "empty")
    refused_in(tmp_path / "runs" / "new")
    assert files(tmp_path) == ["runs", "runs/empty", "runs/empty/.lock"]


def test_what_was_stored_stays_with_the_lock(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with exclusive(folder):
        (folder / "shard").touch()
    refused_in(folder)
    assert files(tmp_path) == ["out", "out/.lock", "out/shard"]


def test_one_that_is_refused_the_folder_removes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with holder(folder):
        with pytest.raises(StorageError, match="another run"), exclusive(folder):
            pytest.fail("two processes hold one folder")
        assert files(folder) == [".lock"]


def test_a_lock_file_of_another_in_the_same_place_stays(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with exclusive(folder):
        folder.rename(tmp_path / "moved")
        with holder(folder) as other:
            kill(other)
    assert files(tmp_path) == ["moved", "moved/.lock", "out", "out/.lock"]


def test_a_lock_file_that_was_removed_before_it_was_locked_holds_nothing(tmp_path, monkeypatch) -> None:
    folder, flock, locked = tmp_path / "out", fcntl.flock, []

    def lock_after_the_holder_left(descriptor: int, operation: int) -> None:
        if not locked:
            (folder / ".lock").unlink()
            folder.rmdir()
        locked.append(descriptor)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", lock_after_the_holder_left)
    with exclusive(folder):
        assert len(locked) == 2
        with pytest.raises(StorageError, match="another run"), exclusive(folder):
            pytest.fail("held twice")


def test_of_many_that_make_and_remove_one_folder_at_once_one_holds_it(tmp_path: Path) -> None:
    folder, inside, held = tmp_path / "runs" / "out", threading.Lock(), []

    def hold_often(number: int) -> None:
        for _ in range(200):
            with suppress_refusal(), exclusive(folder):
                assert inside.acquire(blocking=False), "two hold one folder"
                held.append(number)
                inside.release()

    with ThreadPoolExecutor(4) as pool:
        for ended in [pool.submit(hold_often, number) for number in range(4)]:
            ended.result()
    assert held


@contextmanager
def suppress_refusal() -> Iterator[None]:
    """Pass over the refusal of a folder that another holds; no other error."""
    try:
        yield
    except StorageError as error:
        if "another run is writing here" not in str(error):
            raise
