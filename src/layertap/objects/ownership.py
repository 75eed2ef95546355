"""Who may write to a place: one process, and how a second one is noticed.

`exclusive` is for a folder of this machine: an advisory lock (`flock`) on `.lock`, held for as long
as the process lives. The system releases it however the process ends, so a killed run leaves
nothing to clean up.

`Owner` is the same over a network. The owner keeps `owner.json` beside its shards and writes it
again every few seconds, each time only if it is still its own. A process that finds another's file
watches it. If it changes, its owner is alive, and the newcomer is refused. If it has not changed
for `EXPIRY_SECONDS` by the far end's clock, the newcomer takes it over by a conditional write,
which only one process can win. From an owner that lived on this machine and whose process is gone
it takes over at once, so that a run which was killed and started again does not wait.

An owner that was asleep for longer than that finds the file changed, and stops. What it may have
had in flight harms nothing: every write of shards and manifest is conditional too (`OwnObject`).
"""

import fcntl
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

from layertap.core.strict_json import dump_json
from layertap.errors import LayertapError, StorageError, UsageError
from layertap.objects.base import OWNED, ObjectStore, StoredBytes
from layertap.objects.content import MemoryContent

OWNER_FILE = "owner.json"
EXPIRY_SECONDS = 60.0
_BEAT_SECONDS = 10.0


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold `folder`, which is made where it is missing.

    Raises UsageError where a file stands in its place, StorageError where another process holds it,
    or where it cannot be written to or locked.
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


class OwnObject:
    """A small object that this process alone writes, such as the manifest in a bucket; it is read
    once, when made.

    Each write takes effect only if the object is still as this process left it; otherwise another
    process writes there too, and this one stops. A store without conditional writes is asked for
    the object first: there too another process is noticed, unless it writes in the very moment
    between that look and the write.
    """

    def __init__(self, store: ObjectStore, name: str) -> None:
        self._store = store
        self._name = name
        found = store.read(name)
        self.data = None if found is None else found.data
        """What it holds; None where it does not exist."""
        self._version = None if found is None else found.version

    def write(self, data: bytes) -> None:
        """Let it hold `data`; raises StorageError where another process has written it."""
        if data == self.data:
            return
        if not self._store.conditional:
            self._overwrite(data)
        elif self._version is None:
            self._version = self._taken(self._store.create(self._name, data))
        else:
            self._version = self._taken(self._store.replace_if(self._name, data, self._version))
        self.data = data

    def _taken(self, version: str | None) -> str:
        if version is None:
            raise self._usurped()
        return version

    def _usurped(self) -> StorageError:
        return StorageError(
            f"{self._store.url}/{self._name}: another process has written it; this one stops. What is committed"
            " there is safe: run one process at a time that writes there"
        )

    def _overwrite(self, data: bytes) -> None:
        found = self._store.read(self._name)
        if (None if found is None else found.data) != self.data:
            raise self._usurped()
        self._store.put(self._name, MemoryContent([data]), replaces=OWNED)


@dataclass(frozen=True)
class _Claim:
    """What `owner.json` says; `nonce` makes each claim another one."""

    nonce: str
    host: str
    pid: int
    machine: str
    """Boot and process namespace: where they are the same, `pid` means the same."""
    started: str
    """When the process began, in ticks of its machine."""


class Owner:
    """Holds a store's folder while used as a context manager; `elsewhere` is the flag that names
    another.
    """

    def __init__(
        self,
        store: ObjectStore,
        *,
        expiry: float = EXPIRY_SECONDS,
        beat: float = _BEAT_SECONDS,
        elsewhere: str = "--worker_id",
    ) -> None:
        self._store = store
        self._elsewhere = elsewhere
        self._expiry = expiry
        self._beat = beat
        self._claim = dump_json(asdict(_own_claim()), indent=2).encode()
        self._version = ""
        self._left = False
        self._failure: LayertapError | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="owner", daemon=True)

    def __enter__(self) -> "Owner":
        """Take the folder; raises StorageError where another process holds it.

        Where the store has no conditional writes, nobody can own it, and nobody is refused.
        """
        if self._store.conditional:
            self._version = self._take()
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._version:
            return
        self._closing.set()
        if self._left:
            return
        self._thread.join()
        if self._failure is None:
            with suppress(LayertapError):  # it expires by itself, and hides nothing
                self._store.delete_if(OWNER_FILE, self._version)

    def leave(self) -> None:
        """Ask nothing more of a far end that may not answer; the claim expires by itself."""
        self._left = True

    def require(self) -> None:
        """Raise what has made this process lose the folder, if it has."""
        if self._failure is not None:
            raise self._failure

    def _take(self) -> str:
        watched: str | None = None
        while True:
            found = self._store.read(OWNER_FILE)
            if found is None:
                version = self._store.create(OWNER_FILE, self._claim)
            elif self._is_dead(found):
                version = self._store.replace_if(OWNER_FILE, self._claim, found.version)
            elif watched not in (None, found.version):
                raise StorageError(self._refusal(found))
            else:
                if watched is None:
                    print(f"{self._describe(found)}; waiting to see whether it lives", file=sys.stderr, flush=True)
                watched, version = found.version, None
                time.sleep(min(1.0, self._beat / 2))
            if version is not None:
                return version

    def _keep(self) -> None:
        """Give a sign of life every few seconds."""
        while not self._closing.wait(self._beat):
            try:
                version = self._store.replace_if(OWNER_FILE, self._claim, self._version)
            except LayertapError as error:
                self._failure = error
                return
            if version is None:
                self._failure = StorageError(
                    f"{self._store.url}: another process has taken over; this one stops. What is committed is safe"
                )
                return
            self._version = version

    def _is_dead(self, found: StoredBytes) -> bool:
        return self._silence(found) > self._expiry or _died_here(_parse(found.data))

    def _silence(self, found: StoredBytes) -> float:
        return max(self._store.server_time() - found.updated, 0.0)

    def _describe(self, found: StoredBytes) -> str:
        other = _parse(found.data)
        who = f"process {other.pid} on {other.host}" if other is not None else "somebody"
        return f"{self._store.url}: {who} writes here, last heard of {self._silence(found):.0f} s ago"

    def _refusal(self, found: StoredBytes) -> str:
        return (
            f"{self._describe(found)}. Stop it, or give this run another {self._elsewhere}. Were it dead, the same"
            f" command would take over {self._expiry:.0f} s after its last sign of life"
        )


def _own_claim() -> _Claim:
    return _Claim(uuid4().hex, socket.gethostname(), os.getpid(), _machine(), _started(os.getpid()) or "")


def _parse(data: bytes) -> _Claim | None:
    try:
        return _Claim(**json.loads(data))
    except (ValueError, TypeError):
        return None


def _died_here(other: _Claim | None) -> bool:
    """Whether the claim is that of a process of this machine which is gone."""
    if other is None or not other.machine or other.machine != _machine():
        return False
    return _started(other.pid) != other.started


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return ""


def _started(pid: int) -> str | None:
    """When the process began; None where there is none, or where only its exit status is left."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]
