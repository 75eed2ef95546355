"""Objects in a Google Cloud Storage bucket, through Google's own client.

Every write has a generation precondition, so no write overwrites data that it has not seen. Every
small write also has a nonce in its metadata. If the precondition of a second attempt fails, the
nonce shows whether the first one took effect. The client's own retries are off for these writes,
because they hide that there was a first attempt.

An upload states its CRC-32C in advance, and the server checks it. We then compare what the server
says it holds. Up to 8 MiB an upload is one request. Above, it is one request to begin and one for
each 64 MiB, and each of them can be tried again.

We do not use fsspec (gcsfs) here: it has no compare-and-swap and checks nothing unless asked to.
"""

import base64
import weakref
from collections.abc import Callable, Iterator
from typing import TypeVar
from uuid import uuid4

from google.api_core import exceptions
from google.api_core.retry import Retry as ChunkRetry
from google.cloud.storage import Blob

from layertap.errors import DamageError, StorageError
from layertap.objects.base import OWNED, ObjectInfo, StoredBytes, checked_name
from layertap.objects.content import Content, MemoryContent, require_intact
from layertap.objects.gcs_connection import ServerClock, is_transient, make_client, marked, translated
from layertap.objects.remote import RemoteStore, retried
from layertap.objects.retry import Retry, TransientError

T = TypeVar("T")
_Page = tuple[list[ObjectInfo], str | None]

_NONCE = "layertap-write"
_CHUNK_BYTES = 64 << 20
_TIMEOUT = (10.0, 120.0)  # seconds to connect, and between bytes of an answer


class GcsStore(RemoteStore):
    """The objects below `place`, which is `bucket/prefix`."""

    conditional = True

    def __init__(self, place: str, retry: Retry) -> None:
        bucket, _, prefix = place.strip("/").partition("/")
        self.url = f"gs://{bucket}" + (f"/{prefix}" if prefix else "")
        self._prefix = f"{prefix}/" if prefix else ""
        self._retry = retry
        self._bucket_seen = False
        self._clock = ServerClock()
        self._client = make_client(self._clock)
        # The client is a cycle of references: its connections would stay open until garbage
        # collection.
        self._closing = weakref.finalize(self, self._client.close)
        self._closing.atexit = False
        with translated(self.url):
            self._bucket = self._client.bucket(bucket)

    def create(self, name: str, data: bytes) -> str | None:
        return self._write(name, data, 0)

    def replace_if(self, name: str, data: bytes, version: str) -> str | None:
        return self._write(name, data, int(version))

    def delete_if(self, name: str, version: str) -> bool:
        def delete(again: bool) -> bool:
            try:
                self._blob(name).delete(if_generation_match=int(version), retry=None, timeout=_TIMEOUT)
            except exceptions.PreconditionFailed:
                return False
            except exceptions.NotFound as error:
                _require_bucket(error)
                return again
            return True

        return self._try(name, delete)

    @retried
    def read(self, name: str) -> StoredBytes | None:
        while blob := self._bucket.get_blob(self._prefix + checked_name(name), retry=None, timeout=_TIMEOUT):
            try:
                data = blob.download_as_bytes(
                    if_generation_match=blob.generation, retry=None, timeout=_TIMEOUT, checksum="crc32c"
                )
            except (exceptions.PreconditionFailed, exceptions.NotFound):
                continue  # overwritten between the two requests
            return StoredBytes(data, str(blob.generation), blob.updated.timestamp())
        self._require_bucket_there()
        return None

    @retried
    def read_range(self, name: str, start: int, length: int) -> bytes:
        if length <= 0:
            return b""
        try:
            return self._blob(name).download_as_bytes(
                start=start, end=start + length - 1, retry=None, timeout=_TIMEOUT, checksum=None
            )
        except exceptions.RequestRangeNotSatisfiable:
            return b""
        except exceptions.NotFound as error:
            _require_bucket(error)
            raise DamageError(f"{self.url}/{name}: no such object") from error

    @retried
    def stat(self, name: str) -> ObjectInfo | None:
        blob = self._bucket.get_blob(self._prefix + checked_name(name), retry=None, timeout=_TIMEOUT)
        if blob is None:
            self._require_bucket_there()
        return None if blob is None else self._info(blob)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        page, token = self._page(prefix, None)
        yield from page
        while token is not None:
            page, token = self._page(prefix, token)
            yield from page

    @retried
    def put(self, name: str, content: Content, *, replaces: str | None = None) -> ObjectInfo:
        info: ObjectInfo | None
        try:
            info = self._insert(name, content, None if replaces == OWNED else int(replaces or 0))
        except exceptions.PreconditionFailed:
            blob = self._bucket.get_blob(self._prefix + name, retry=None, timeout=_TIMEOUT)
            info = None if blob is None else self._info(blob)
        if info is None or (info.size, info.crc32c) != (content.size, content.crc32c):
            raise StorageError(
                f"{self.url}/{name}: holds other bytes than {content}; another run is writing there, or has written."
                " Give another place, or delete that object if it is not needed"
            )
        return info

    def server_time(self) -> float:
        if self._clock.now() is None:
            self._try("", lambda _again: self._require_bucket_there())
        now = self._clock.now()
        if now is None:
            raise StorageError(f"{self.url}: the server's answers bear no date")
        return now

    def close(self) -> None:
        self._closing()

    def _blob(self, name: str) -> Blob:
        return self._bucket.blob(self._prefix + checked_name(name))

    def _info(self, blob: Blob) -> ObjectInfo:
        crc32c = None if blob.crc32c is None else base64.b64decode(blob.crc32c).hex()
        name = blob.name.removeprefix(self._prefix)
        return ObjectInfo(name, blob.size, str(blob.generation), blob.updated.timestamp(), crc32c)

    def _write(self, name: str, data: bytes, generation: int) -> str | None:
        content, nonce = MemoryContent([data]), uuid4().hex

        def write(again: bool) -> str | None:
            try:
                return self._insert(name, content, generation, nonce).version
            except exceptions.PreconditionFailed:
                return self._version_written(name, nonce) if again else None
            except exceptions.NotFound as error:  # the generation to replace is gone
                _require_bucket(error)
                return None

        return self._try(name, write)

    def _version_written(self, name: str, nonce: str) -> str | None:
        """Return the version that an attempt without a reply wrote, or None."""
        blob = self._bucket.get_blob(self._prefix + name, retry=None, timeout=_TIMEOUT)
        return str(blob.generation) if blob is not None and (blob.metadata or {}).get(_NONCE) == nonce else None

    def _insert(self, name: str, content: Content, generation: int | None, nonce: str | None = None) -> ObjectInfo:
        """Write an object. With a nonce, make one attempt, which the nonce identifies."""
        blob = self._blob(name)
        blob.chunk_size = _CHUNK_BYTES
        blob.crc32c = base64.b64encode(bytes.fromhex(content.crc32c)).decode()
        if nonce is not None:
            blob.metadata = {_NONCE: nonce}
        try:
            with content.open() as file:
                blob.upload_from_file(
                    file,
                    size=content.size,
                    content_type="application/octet-stream",  # never gzip, which readers might decompress
                    if_generation_match=generation,
                    checksum=None,
                    timeout=_TIMEOUT,
                    retry=self._chunk_retry() if nonce is None else None,
                )
        except exceptions.BadRequest as error:  # the checksum does not match
            require_intact(content)
            raise TransientError(error.message) from error
        return self._info(blob)

    def _chunk_retry(self) -> ChunkRetry:
        """Return how to retry one request of a big upload before the whole upload is retried."""
        return ChunkRetry(
            predicate=lambda error: not self._retry.stopped and is_transient(error),
            initial=self._retry.first_pause,
            maximum=self._retry.longest_pause,
            timeout=self._retry.seconds / 4,
        )

    @retried
    def _page(self, prefix: str, token: str | None) -> _Page:
        listing = self._client.list_blobs(
            self._bucket, prefix=self._prefix + prefix, page_token=token, retry=None, timeout=_TIMEOUT
        )
        page = next(listing.pages, ())
        return [self._info(blob) for blob in page], listing.next_page_token

    def _require_bucket_there(self) -> None:
        """List the bucket, because a read of one object does not say that the bucket is missing."""
        if not self._bucket_seen:
            next(iter(self._client.list_blobs(self._bucket, max_results=1, retry=None, timeout=_TIMEOUT)), None)
            self._bucket_seen = True

    def _try(self, name: str, attempt: Callable[[bool], T]) -> T:
        what = f"{self.url}/{name}"
        with translated(what):
            return self._retry(what, lambda again: marked(attempt, again))


def _require_bucket(error: exceptions.NotFound) -> None:
    """Raise the error again if it says that the bucket is missing."""
    if "bucket does not exist" in str(error):
        raise error
