import errno
import fcntl
import subprocess
import sys

import pytest

from layertap.errors import StorageError, UsageError
from layertap.objects.ownership import exclusive

HOLDER = """
import sys
from pathlib import Path
from layertap.objects.ownership import exclusive

with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds `tmp_path`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_while_the_first_lives(tmp_path, holder):
    with pytest.raises(StorageError, match="another run is writing here") as refused, exclusive(tmp_path):
        pytest.fail("two processes hold one folder")
    assert str(refused.value).startswith(f"{tmp_path}: ")
    assert holder.poll() is None


def test_a_killed_process_holds_nothing(tmp_path, holder):
    holder.kill()
    holder.wait()
    with exclusive(tmp_path):
        pass


def test_a_process_that_ends_holds_nothing(tmp_path, holder):
    holder.stdin.close()
    holder.wait()
    with exclusive(tmp_path):
        pass


def test_another_folder_is_free(tmp_path, holder):
    with exclusive(tmp_path / "other"):
        assert (tmp_path / "other").is_dir()


def test_one_process_does_not_hold_a_folder_twice(tmp_path):
    with exclusive(tmp_path), pytest.raises(StorageError, match="another run"), exclusive(tmp_path):
        pytest.fail("held twice")


@pytest.mark.parametrize("error", [ValueError, BlockingIOError, OSError])
def test_an_exception_inside_passes_unchanged_and_the_folder_is_free_again(tmp_path, error):
    with pytest.raises(error, match=r"^said inside$"), exclusive(tmp_path):
        raise error("said inside")
    with exclusive(tmp_path):
        pass


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    path = tmp_path / "file"
    path.touch()
    for place in (path, path / "below"):
        with pytest.raises(UsageError, match="is a file, or lies below one"), exclusive(place):
            pytest.fail("a file is no folder")


def test_a_file_system_without_locks_is_named_as_such(tmp_path, monkeypatch):
    def no_locks(_descriptor, _operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(StorageError, match="cannot be locked: No locks available"), exclusive(tmp_path):
        pytest.fail("not locked")
