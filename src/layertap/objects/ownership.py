"""Who may write to a place over a network: one process, and how it notices a second one.

The `Owner` keeps `owner.json` beside its shards. (A folder of this machine has a lock instead:
folder_lock.py.) It rewrites the file every few seconds, each time only if it is still its own. A
process that finds the file of another watches it. If the file changes, its owner is alive, and the
newcomer is refused. If it does not change for `EXPIRY_SECONDS` by the store's clock, the newcomer
takes it over by a conditional write, which only one process can win. If the owner was a process of
this machine that is gone, the newcomer takes over at once, so a run that was killed and restarted
does not wait.

An owner that slept for longer than that finds the file changed, and stops. Its late writes harm
nothing, because every write of shards and manifest is conditional too (`OwnObject`).
"""

import json
import os
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

from layertap.core.strict_json import dump_json
from layertap.errors import LayertapError, StorageError
from layertap.objects.base import OWNED, ObjectStore, StoredBytes
from layertap.objects.content import MemoryContent

OWNER_FILE = "owner.json"
EXPIRY_SECONDS = 60.0
_BEAT_SECONDS = 10.0


class OwnObject:
    """A small object that only this process writes, such as the manifest in a bucket.

    It is read once, when made. Each write takes effect only if the object is still as this process
    left it. Otherwise another process writes there too, and this one stops. In a store without
    conditional writes, we read the object first. This shows another process too, unless it writes
    between that read and our write.
    """

    def __init__(self, store: ObjectStore, name: str) -> None:
        self._store = store
        self._name = name
        found = store.read(name)
        self.data = None if found is None else found.data
        """Its content; None if it does not exist."""
        self._version = None if found is None else found.version

    def write(self, data: bytes) -> None:
        """Set the content to `data`; raises StorageError if another process changed it."""
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
    """The content of `owner.json`. `nonce` makes each claim unique."""

    nonce: str
    host: str
    pid: int
    machine: str
    """Boot and process namespace. If they are the same, `pid` means the same."""
    started: str
    """When the process began, in ticks of its machine."""


class Owner:
    """The owner of a store's folder, as a context manager. `elsewhere` is the flag that names
    another folder.
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
        """Take the folder; raises StorageError if another process holds it.

        If the store has no conditional writes, nobody can own it, and nobody is refused.
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
            with suppress(LayertapError):  # it expires by itself; an error here hides nothing
                self._store.delete_if(OWNER_FILE, self._version)

    def leave(self) -> None:
        """Send no more requests to a store that may not answer; the claim expires by itself."""
        self._left = True

    def require(self) -> None:
        """Raise the reason why this process lost the folder, if it did."""
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
        """Renew the claim every few seconds."""
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
    """Return whether the claim belongs to a process of this machine that is gone."""
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
    """Return when the process began; None if it is gone, or only its exit status is left."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]
