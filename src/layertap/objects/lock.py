"""One writer an output folder.

An advisory lock (`flock`) on `.lock` in the folder, held for as long as the process lives: the system releases it
however the process ends, so a killed run leaves nothing to clean up. Two workers given one folder by mistake: the
second is refused.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from layertap.errors import StorageError, UsageError


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold `folder`, which is made where it is missing.

    Raises UsageError where a file stands in its place, StorageError where another process holds it, or where it
    cannot be written to or locked.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(f"{folder}: is a file, or lies below one; give a folder as --output_dir") from error
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written to: {error.strerror or error}") from error
    try:
        _lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise StorageError(
            f"{folder}: another run is writing here; wait for it, or give another --output_dir"
        ) from error
    except OSError as error:  # file systems without locks
        raise StorageError(f"{folder}: cannot be locked: {error.strerror}; give a local --output_dir") from error
