"""One writer a bucket folder: what `objects/lock.py` is for a local folder, over a network.

The owner keeps `owner.json` beside its shards and writes it anew every few seconds, each time only if it is still its
own. A process that finds another's file watches it: if it changes, its owner is alive, and the newcomer is refused;
if it has not changed for `EXPIRY_SECONDS` by the far end's clock, the newcomer takes it over by a conditional write,
which one alone can win. An owner that lived on this machine and whose process is gone is taken over from at once, so
that a run which was killed and started again does not wait.

An owner that was asleep for longer than that finds the file changed, and stops. What it may have had in flight harms
nothing: every write of shards and manifest is conditional too.
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

from layertap.errors import LayertapError, StorageError
from layertap.objects.base import ObjectStore, StoredBytes

FILE_NAME = "owner.json"
EXPIRY_SECONDS = 60.0
_BEAT_SECONDS = 10.0


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
    """Holds a store's folder while used as a context manager."""

    def __init__(self, store: ObjectStore, *, expiry: float = EXPIRY_SECONDS, beat: float = _BEAT_SECONDS) -> None:
        self._store = store
        self._expiry = expiry
        self._beat = beat
        self._claim = json.dumps(asdict(_own_claim()), indent=2).encode()
        self._version = ""
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
        self._thread.join()
        if self._failure is None:
            with suppress(LayertapError):  # it expires by itself, and hides nothing
                self._store.delete_if(FILE_NAME, self._version)

    def require(self) -> None:
        """Raise what has made this process lose the folder, if it has."""
        if self._failure is not None:
            raise self._failure

    def _take(self) -> str:
        watched: str | None = None
        while True:
            found = self._store.read(FILE_NAME)
            if found is None:
                version = self._store.create(FILE_NAME, self._claim)
            elif self._is_dead(found):
                version = self._store.replace_if(FILE_NAME, self._claim, found.version)
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
                version = self._store.replace_if(FILE_NAME, self._claim, self._version)
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
            f"{self._describe(found)}. Stop it, or give this run another --worker_id. Were it dead, the same command"
            f" would take over {self._expiry:.0f} s after its last sign of life"
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
    """When the process began; None where there is none, or where only its parent has not noticed its end."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]
