"""Processes that hold a folder or a place in a bucket, and how they end."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_HOLDER = """
import sys
from pathlib import Path
from layertap.objects import open_store
from layertap.objects.folder_lock import exclusive
from layertap.objects.ownership import Owner

place = sys.argv[1]
with Owner(open_store(place), beat=0.1) if "://" in place else exclusive(Path(place)):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(place: object) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds `place`."""
    command = [sys.executable, "-c", _HOLDER, str(place)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()


def end(process: subprocess.Popen[str]) -> None:
    process.stdin.close()
    process.wait()
