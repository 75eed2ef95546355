"""No test leaves anything behind. A test that does fails, with a list of what it left.

Before and after each test, without its own fixtures, this looks at threads of Python, child
processes and their children, sockets, pipes, writable files, environment variables, and the files
in the working directory. Fixtures of a wider scope hold theirs before the test, so those do not
count as the test's.

What a test leaves would run in the middle of another test. A thread of Google's client that looked
for a deleted bucket, and drew its pauses from the global random generator, once made tests of
Hypothesis fail that have no bucket.

A look and a comparison cost 0.4 ms. Where something is new, the garbage is collected and the look
repeated until it is gone or `leak_seconds` (an ini option) have passed: a thread that was told to
end may still be on its way.

Files are the tests' own in pytest's temporary folders alone. In the working directory, which is the
clone, one would come into somebody's commit, or be found by the next test. Several processes of
pytest share it: there, what one test leaves fails those that run beside it, too.

Not seen: native threads (XLA's and torch's belong to the process); files that are only read, since
a dataset that many tests share maps what each of them looks at, and Python itself warns of those
that are forgotten; where there is no /proc, processes and files.
"""

import fcntl
import gc
import itertools
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

_LINUX = Path("/proc/self/fd").is_dir()
_FIRST_PAUSE_SECONDS = 0.002
_TICKS = os.sysconf("SC_CLK_TCK")
_MARK = "LAYERTAP_TESTS_PROCESS"
"""Names the test process to whatever it starts, so that grandchildren are found whose parent is
gone."""

ALLOWED_THREADS = {
    "fsspecIO": "fsspec runs the requests of all its file systems in one loop, which lives as long as the process",
}
ALLOWED_VARIABLES = {
    "DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA": "the one switch of Google's client; set for good at first use",
    "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "the one switch of gcsfs; set for good at first use",
    "TORCHINDUCTOR_CACHE_DIR": "torch sets it for good when its compiler is imported, as transformers does",
    "PYTEST_CURRENT_TEST": "pytest changes it between the phases of a test",
}
ALLOWED_ENTRIES = {
    "__pycache__": "Python keeps what it compiles there",
    "build": "what make builds, and setuptools",
}
"""Of the working directory; and what begins with a dot, which belongs to tools, such as
`.pytest_cache`."""


@dataclass(frozen=True)
class Look:
    """What exists at one moment."""

    threads: frozenset[threading.Thread]
    files: frozenset[tuple[int, str]]
    """Number, and where /proc says that it leads."""
    variables: dict[str, str]
    children: tuple[float, ...]
    """Changes when a child process has been waited for."""
    entries: frozenset[str]
    """What is in the working directory."""
    seconds: float
    """Since the machine started."""

    @classmethod
    def now(cls) -> "Look":
        """Look now."""
        return cls(
            frozenset(threading.enumerate()),
            frozenset(_files()),
            dict(os.environ),
            tuple(resource.getrusage(resource.RUSAGE_CHILDREN)),
            frozenset(os.listdir()),
            time.clock_gettime(time.CLOCK_BOOTTIME) if _LINUX else 0.0,
        )

    def left(self) -> list[str]:
        """Return what has been added since, in words."""
        return [*self._threads(), *self._processes(), *self._descriptors(), *self._changed(), *self._made()]

    def _threads(self) -> Iterator[str]:
        for thread in threading.enumerate():
            # A dummy stands for a native thread that called Python once; nobody started it here.
            foreign = isinstance(thread, threading._DummyThread)
            allowed = foreign or thread.name in ALLOWED_THREADS or thread in _loop_threads()
            if thread not in self.threads and not allowed:
                yield f"thread {thread.name}"

    def _processes(self) -> Iterator[str]:
        if not _LINUX or (not _has_child() and tuple(resource.getrusage(resource.RUSAGE_CHILDREN)) == self.children):
            return
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended meanwhile, or is another user's
                if int(folder.name) != os.getpid() and _is_ours(folder) and _begun(folder) > self.seconds:
                    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                    yield f"process {folder.name}: {command[:200] or 'ended, but never waited for'}"

    def _descriptors(self) -> Iterator[str]:
        new = frozenset(_files()) - self.files
        if new:
            allowed = _loop_descriptors()
            written = (place for place in sorted(new) if place[0] not in allowed and _may_be_written(*place))
            yield from itertools.starmap(_described, written)

    def _changed(self) -> Iterator[str]:
        now = os.environ
        if now == self.variables:
            return
        for name in sorted({*now, *self.variables} - ALLOWED_VARIABLES.keys()):
            if now.get(name) != self.variables.get(name):
                yield f"variable {name}: was {self.variables.get(name)!r}, is {now.get(name)!r}"

    def _made(self) -> Iterator[str]:
        for name in sorted(frozenset(os.listdir()) - self.entries - ALLOWED_ENTRIES.keys()):
            if not name.startswith("."):
                yield f"{name} in {os.getcwd()}"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `leak_seconds`."""
    parser.addini("leak_seconds", "how long a test's threads and files may take to go when it has ended", default="10")


def pytest_configure() -> None:
    """Mark this process's descendants as its own, and keep progress bars from starting tqdm's
    thread, which never ends.
    """
    os.environ[_MARK] = str(os.getpid())
    tqdm.monitor_interval = 0  # transformers, datasets and huggingface_hub draw some; our own say it themselves


@pytest.fixture(autouse=True)
def leaves_nothing_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves something behind.

    This fixture begins before the test's other fixtures, and ends after them.
    """
    before = Look.now()
    yield
    left = before.left()
    if left:
        left = _left_in_the_end(before, float(request.config.getini("leak_seconds")))
    if left:
        pytest.fail("\n  ".join([f"{request.node.nodeid} left behind:", *left]), pytrace=False)


def _left_in_the_end(before: Look, seconds: float) -> list[str]:
    until, pause = time.monotonic() + seconds, _FIRST_PAUSE_SECONDS
    for generation in itertools.chain((0, 1), itertools.repeat(2)):  # young garbage first: all of it takes 0.1 s
        gc.collect(generation)  # also later: a circle is garbage only when the last thread has let go of it
        left = before.left()
        if not left or time.monotonic() > until:
            break
        time.sleep(pause)
        pause *= 2
    return left


def _files() -> Iterator[tuple[int, str]]:
    for name in os.listdir("/proc/self/fd") if _LINUX else ():
        with suppress(OSError):  # the listing's own, which is closed by now
            yield int(name), os.readlink(f"/proc/self/fd/{name}")


def _may_be_written(number: int, target: str) -> bool:
    """Return whether it is something other than a file, or a file that was opened for writing."""
    if not target.startswith("/"):
        return True
    with suppress(OSError):  # closed meanwhile
        return fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
    return False


def _described(number: int, target: str) -> str:
    if target.startswith("socket:"):
        with suppress(OSError), socket.socket(fileno=os.dup(number)) as same:
            name = same.getsockname()
            listening = same.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            return f"socket {number}: {name}, " + ("listening" if listening else f"connected to {_peer(same)}")
    return f"file {number}: {target}"


def _peer(connected: socket.socket) -> object:
    with suppress(OSError):
        return connected.getpeername()
    return "nobody any more"


def _has_child() -> bool:
    """Return whether there is a child process, even one that has ended and was not waited for."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _is_ours(process: Path) -> bool:
    """Return whether it is this process's child, or has its mark."""
    parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
    return parent == os.getpid() or f"{_MARK}={os.getpid()}".encode() in (process / "environ").read_bytes().split(b"\0")


def _begun(process: Path) -> float:
    """Return when it was started, in seconds since the machine was."""
    return (int((process / "stat").read_text().rpartition(")")[2].split()[19]) + 1) / _TICKS


def _loop() -> Any:
    module = sys.modules.get("fsspec.asyn")
    return module.loop[0] if module is not None else None


def _loop_threads() -> set[threading.Thread]:
    """Return the threads in which fsspec's loop looks up addresses; they end with its own."""
    loop = _loop()
    return set() if loop is None or loop._default_executor is None else set(loop._default_executor._threads)


def _loop_descriptors() -> set[int]:
    """Return the descriptors of fsspec's loop itself, which nobody else uses."""
    loop = _loop()
    return set() if loop is None else {loop._selector.fileno(), loop._ssock.fileno(), loop._csock.fileno()}
