"""Objects at any URL that fsspec knows (`s3://`, `sftp://`, ...), for one writer at a time.

fsspec has no compare-and-swap, so these stores refuse conditional calls. Leases, with several
workers on one dataset, need a folder or `gs://`. fsspec gives no checksums either, so a store reads
each upload back. This doubles the traffic, but no server is trusted without a check.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, NoReturn, TypeVar

from layertap.core.extras import needed_for
from layertap.core.far import explain, failures, is_absence
from layertap.errors import AccessError, DamageError, StorageError, UsageError
from layertap.objects.base import ObjectInfo, StoredBytes, checked_name
from layertap.objects.content import Content, FileContent, require_intact
from layertap.objects.files import crc32c_of
from layertap.objects.remote import RemoteStore, retried
from layertap.objects.retry import Retry, TransientError

T = TypeVar("T")
_Exceptions = tuple[type[BaseException], ...]

_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
_FLAT = ("s3", "s3a", "abfs", "abfss", "az", "oss", "memory")
"""Stores without folders. There, making a folder would make a bucket."""
_READ_BYTES = 16 << 20
_TIMES = ("LastModified", "last_modified", "mtime", "updated", "created")
_VERSIONS = ("ETag", "etag", "generation", "mtime", "LastModified", "created")


class FsspecStore(RemoteStore):
    """The objects below a URL. It refuses conditional calls."""

    conditional = False

    def __init__(self, url: str, retry: Retry) -> None:
        import fsspec

        self.url = url.rstrip("/")
        self._retry = retry
        self._flat = url.partition("://")[0] in _FLAT
        try:
            self._fs, root = fsspec.core.url_to_fs(self.url, use_listings_cache=False, skip_instance_cache=True)
        except ImportError as error:
            raise UsageError(f"{url}: {error}; it needs {needed_for(url)}") from error
        except ValueError as error:
            raise UsageError(f"{url}: {error}; give a folder, gs://, s3:// or another URL that fsspec knows") from error
        self._prefix = f"{root.rstrip('/')}/"

    def create(self, name: str, data: bytes) -> str | None:
        self._refuse(name)

    def replace_if(self, name: str, data: bytes, version: str) -> str | None:
        self._refuse(name)

    def delete_if(self, name: str, version: str) -> bool:
        self._refuse(name)

    def server_time(self) -> float:
        self._refuse("clock")

    def read(self, name: str) -> StoredBytes | None:
        info = self.stat(name)
        if info is None:
            return None
        data = self._try(name, lambda _again: self._fs.cat_file(self._path(name)))
        return StoredBytes(data, info.version, info.updated)

    @retried
    def read_range(self, name: str, start: int, length: int) -> bytes:
        try:
            if length > 0:
                return self._fs.cat_file(self._path(name), start=start, end=start + length)
            self._fs.info(self._path(name))
        except (FileNotFoundError, IsADirectoryError) as error:
            raise DamageError(f"{self.url}/{name}: no such object") from error
        except (*_passing(), *_http()) as error:
            if not self._is_behind_the_end(name, start, error):  # some stores refuse a range after the end
                raise
        return b""

    @retried
    def stat(self, name: str) -> ObjectInfo | None:
        try:
            raw = self._fs.info(self._path(name))
        except FileNotFoundError as error:
            if is_absence(self.url, error):
                return None
            raise
        return self._info(name, raw) if raw["type"] == "file" else None

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        for path, raw in sorted(self._find(prefix).items()):
            name = path.removeprefix(self._prefix).lstrip("/")
            if name.startswith(prefix):
                yield self._info(name, raw)

    @retried
    def put(self, name: str, content: Content, *, replaces: str | None = None) -> ObjectInfo:
        """See `ObjectStore`; but it overwrites whatever is there."""
        expected = content.size, content.crc32c
        self._write(name, content)
        self._fs.invalidate_cache()
        info = self._info(name, self._fs.info(self._path(name)))
        arrived = info.size, self._crc32c(name, info.size)
        if arrived != expected:
            require_intact(content)
            raise OSError("arrived with {} bytes and CRC-32C {}, should have {} and {}".format(*arrived, *expected))
        return info._replace(crc32c=content.crc32c)

    def close(self) -> None:
        """Do nothing: fsspec closes its connections itself."""

    def _refuse(self, name: str) -> NoReturn:
        raise UsageError(
            f"{self.url}/{name}: writing on a condition is not possible there, so only one process may write;"
            " what several share needs a folder or gs://"
        )

    @retried
    def _find(self, _prefix: str) -> dict[str, Any]:
        self._fs.invalidate_cache()
        try:
            return self._fs.find(self._prefix, detail=True)
        except FileNotFoundError as error:
            if is_absence(self.url, error):
                return {}
            raise

    def _write(self, name: str, content: Content) -> None:
        if not self._flat:
            self._fs.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)
        if isinstance(content, FileContent):  # in pieces, several at once if the library can
            self._fs.put_file(str(content.path), self._path(name))
        else:
            self._fs.pipe_file(self._path(name), b"".join(content.chunks()))

    def _path(self, name: str) -> str:
        return self._prefix + checked_name(name)

    def _info(self, name: str, raw: dict[str, Any]) -> ObjectInfo:
        updated = next((raw[key] for key in _TIMES if raw.get(key)), 0.0)
        seconds = updated.timestamp() if isinstance(updated, datetime) else float(updated)
        version = next((str(raw[key]) for key in _VERSIONS if raw.get(key)), "")
        return ObjectInfo(name, int(raw["size"]), version, seconds, None)

    def _is_behind_the_end(self, name: str, start: int, error: BaseException) -> bool:
        """Return whether a range starts after the end. It costs a request: ask after an error."""
        return not isinstance(error, _LASTING) and start >= int(self._fs.info(self._path(name))["size"])

    def _crc32c(self, name: str, size: int) -> str:
        starts = range(0, size, _READ_BYTES)
        path = self._path(name)
        return crc32c_of(self._fs.cat_file(path, start=at, end=min(at + _READ_BYTES, size)) for at in starts)

    def _try(self, name: str, attempt: Callable[[bool], T]) -> T:
        what = f"{self.url}/{name}"
        with _translated(what):
            return self._retry(what, lambda again: _marked(what, attempt, again))


def _marked(what: str, attempt: Callable[[bool], T], again: bool) -> T:
    """Return what `attempt` returns; raises TransientError for errors that are worth a retry."""
    try:
        return attempt(again)
    except failures() as error:
        refusal = explain(what, error)
        lasting = isinstance(error, (*_LASTING, ValueError)) if refusal is None else not refusal.passing
        if lasting:
            raise
        raise TransientError(str(error)) from error


def _passing() -> _Exceptions:
    """Return the exceptions that are worth a retry, unless they are in `_LASTING`."""
    return (OSError, *_botocore("HTTPClientError"))


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except failures() as error:
        raise _refusal(what, error) from error


def _refusal(what: str, error: BaseException) -> BaseException:
    """Return our error for an error, or the error itself if we do not know it."""
    refusal = explain(what, error)
    if refusal is None:
        return StorageError(f"{what}: {error}") if isinstance(error, OSError) else error
    if refusal.kind == "absent":
        return UsageError(f"{what}: there is no such bucket or folder ({error}); make it, or name another")
    kind = AccessError if refusal.kind in ("credentials", "denied", "payer") else StorageError
    return kind(f"{what}: {refusal.reason}")


def _botocore(*names: str) -> _Exceptions:
    """Return exceptions of the library below s3fs, if it is loaded; they are not OSErrors."""
    return _loaded("botocore.exceptions", *names)


def _http() -> _Exceptions:
    """Return what the libraries below other backends raise for an HTTP error."""
    return (*_loaded("aiohttp", "ClientResponseError"), *_loaded("azure.core.exceptions", "HttpResponseError"))


def _loaded(name: str, *names: str) -> _Exceptions:
    module = sys.modules.get(name)
    return tuple(getattr(module, name) for name in names) if module is not None else ()
