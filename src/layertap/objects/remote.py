"""Objects that are read in parts, one request for each: what all stores have in common that are not of this machine."""

from abc import ABC, abstractmethod
from copy import copy
from typing import BinaryIO, Self

import numpy as np

from layertap.errors import DamageError
from layertap.objects.base import Bytes, ObjectInfo, checked_name
from layertap.objects.seeking import open_parts

_RANGE_BYTES = 32 << 20


class RemoteStore(ABC):
    """Reading by `read_range`; `_prefix` is what stands before the names of objects below `url`."""

    local = False
    url: str
    _prefix: str
    _above: "RemoteStore | None" = None
    """The store whose connections this one uses; they close when that one ends."""

    @abstractmethod
    def read_range(self, name: str, start: int, length: int) -> bytes:
        """See `ObjectStore`, as the other one."""

    @abstractmethod
    def stat(self, name: str) -> ObjectInfo | None: ...

    def view(self, name: str, start: int, length: int) -> Bytes:
        """One request."""
        content = self.read_range(name, start, length)
        if len(content) != length:
            raise DamageError(f"{self.url}/{name}: ends before byte {start + length}")
        return np.frombuffer(content, np.uint8)

    fetch = view

    def open(self, name: str, size: int | None = None) -> BinaryIO:
        """One request for each 32 MiB, which are in memory."""
        if size is None:
            info = self.stat(name)
            if info is None:
                raise DamageError(f"{self.url}/{name}: missing")
            size = info.size
        return open_parts(lambda start, length: self.read_range(name, start, length), size, _RANGE_BYTES)

    def below(self, folder: str) -> Self:
        inner = copy(self)
        inner.url, inner._prefix = f"{self.url}/{checked_name(folder)}", f"{self._prefix}{folder}/"
        inner._above = self
        return inner
