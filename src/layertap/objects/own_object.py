"""A small object that this process alone writes, such as the manifest in a bucket.

Each write takes effect only if the object is still as this process left it; otherwise somebody else writes there too,
and this one stops. Where a store has no conditional writes, it is looked at, written over, and read back: another
process is noticed there too, unless it writes in the very moment between the look and the write.
"""

import tempfile
from pathlib import Path

import google_crc32c

from layertap.errors import StorageError
from layertap.objects.base import ObjectStore


class OwnObject:
    """The object `name` in `store`; reads it once, on being made."""

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
            " there is safe: run one process at a time with this --worker_id"
        )

    def _overwrite(self, data: bytes) -> None:
        found = self._store.read(self._name)
        if (None if found is None else found.data) != self.data:
            raise self._usurped()
        with tempfile.TemporaryDirectory(prefix="layertap-") as folder:
            path = Path(folder) / "data"
            path.write_bytes(data)
            self._store.upload(path, self._name, f"{google_crc32c.value(data):08x}")
