"""Who may write to a folder of this machine: one process, as long as it lives.

`exclusive` holds an advisory lock (`flock`) on the file `.lock` of the folder. The system releases
it however the process ends, so a killed run leaves nothing to clean up.

A process that made the folder and stored nothing in it removes both again, so a run that is refused
leaves no new folder. To remove a lock file is safe only if a process that has opened it notices.
So the file is removed while its lock is held, and after a process has got a lock it looks whether
the file that it locked is still the one in the folder. If not, it begins again. `rmdir` removes
only empty folders. If one disappears while another process makes its lock file there, that process
begins again too. A folder that was there before stays, with its `.lock`.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from layertap.errors import StorageError, UsageError

LOCK_FILE = ".lock"
# How often a folder may disappear before we take it for an error of the file system.
_ATTEMPTS = 100


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold `folder`, which is made if it is missing.

    If this made it and it is still empty at the end, it is removed again, with the folders above it
    that were made for it.

    Raises UsageError if it is a file, StorageError if another process holds it, or if it cannot be
    written to or locked.
    """
    held = _hold(folder)
    try:
        yield
    finally:
        _leave(folder, held)


class _Held(NamedTuple):
    """An open lock file, and the folders that were made for it, the innermost first."""

    descriptor: int
    made: list[Path]


def _hold(folder: Path) -> _Held:
    while True:
        opened = _open_named(folder)
        try:
            _lock(opened.descriptor, folder)
        except StorageError:
            os.close(opened.descriptor)
            raise
        if _is_there(opened.descriptor, folder):
            return opened
        os.close(opened.descriptor)  # its holder removed it before we had the lock


def _open_named(folder: Path) -> _Held:
    try:
        return _open(folder)
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(f"{folder}: is a file, or is inside one; give a folder as --output_dir") from error
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written to: {error.strerror or error}") from error


def _open(folder: Path, attempts: int = _ATTEMPTS) -> _Held:
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _Held(os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644), made)
    except (FileExistsError, FileNotFoundError):  # also if another process removes it at this moment
        if attempts == 1:
            raise
        return _open(folder, attempts - 1)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise StorageError(
            f"{folder}: another run is writing here; wait for it, or give another --output_dir"
        ) from error
    except OSError as error:  # file systems without locks
        raise StorageError(f"{folder}: cannot be locked: {error.strerror}; give a local --output_dir") from error


def _leave(folder: Path, held: _Held) -> None:
    with suppress(OSError):  # a folder that was moved away, or cannot be changed any more, stays
        if held.made and os.listdir(folder) == [LOCK_FILE] and _is_there(held.descriptor, folder):
            (folder / LOCK_FILE).unlink()
    os.close(held.descriptor)
    with suppress(OSError):  # ends at the first that is in use
        for path in held.made:
            path.rmdir()


def _is_there(descriptor: int, folder: Path) -> bool:
    """Return whether an open lock file is the one that a newcomer would open."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(folder / LOCK_FILE))
    except FileNotFoundError:
        return False
