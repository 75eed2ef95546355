"""What remote stores have in common: they read objects in parts, with one request for each."""

import io
from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import copy
from functools import wraps
from typing import Any, BinaryIO, Self, TypeVar, cast

import numpy as np

from layertap.errors import DamageError
from layertap.objects.base import Bytes, ObjectInfo, checked_name
from layertap.objects.content import SeekableBytes

_RANGE_BYTES = 32 << 20

M = TypeVar("M", bound=Callable[..., Any])
T = TypeVar("T")


class RemoteStore(ABC):
    """It reads through `read_range`. `_prefix` comes before names; `_try` makes attempts."""

    local = False
    url: str
    _prefix: str
    _above: "RemoteStore | None" = None
    """The store whose connections this one uses. They close when that one closes."""

    @abstractmethod
    def read_range(self, name: str, start: int, length: int) -> bytes: ...

    @abstractmethod
    def stat(self, name: str) -> ObjectInfo | None: ...

    @abstractmethod
    def _try(self, name: str, attempt: Callable[[bool], T]) -> T:
        """Return what `attempt` returns in the end. Its argument: did an attempt before it fail?"""

    def view(self, name: str, start: int, length: int) -> Bytes:
        """See `ObjectStore`. It costs one request."""
        content = self.read_range(name, start, length)
        if len(content) != length:
            raise DamageError(f"{self.url}/{name}: ends before byte {start + length}")
        return np.frombuffer(content, np.uint8)

    fetch = view

    def open(self, name: str, size: int | None = None) -> BinaryIO:
        """See `ObjectStore`. It costs one request for each 32 MiB, which are in memory."""
        if size is None:
            info = self.stat(name)
            if info is None:
                raise DamageError(f"{self.url}/{name}: missing")
            size = info.size
        return cast(BinaryIO, io.BufferedReader(_Ranges(self, name, size), _RANGE_BYTES))

    def below(self, folder: str) -> Self:
        inner = copy(self)
        inner.url, inner._prefix = f"{self.url}/{checked_name(folder)}", f"{self._prefix}{folder}/"
        inner._above = self
        return inner


def retried(method: M) -> M:
    """Let `_try` attempt a method of a store. The method's first argument is a name."""

    @wraps(method)
    def call(store: RemoteStore, name: str, *arguments: object, **named: object) -> object:
        return store._try(name, lambda _again: method(store, name, *arguments, **named))

    return cast(M, call)


class _Ranges(SeekableBytes):
    """The first `size` bytes of an object, or as many as there are."""

    def __init__(self, store: RemoteStore, name: str, size: int) -> None:
        super().__init__(size)
        self._store = store
        self._name = name

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]
        data = self._next(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        return b"".join(iter(lambda: self._next(_RANGE_BYTES), b""))

    def _next(self, most: int) -> bytes:
        wanted = min(most, _RANGE_BYTES, self._size - self._position)
        data = self._store.read_range(self._name, self._position, wanted) if wanted > 0 else b""
        self._position += len(data)
        if len(data) < wanted:  # the object ends here: no need to ask again
            self._size = self._position
        return data
