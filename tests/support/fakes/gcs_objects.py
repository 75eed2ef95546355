"""The state of buckets, as strict as Google's: generations, preconditions, checksums, listing,
resumable uploads.

Every method is called under one lock, so that every request is atomic and a listing sees all that
was answered before it (GCS is strongly consistent). Generations only grow, also over a deletion.
Time is the server's own, `skew` away from this machine's.
"""

import base64
import hashlib
import itertools
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import google_crc32c

Json = dict[str, Any]


@dataclass
class Refusal(Exception):
    """An answer that is an error."""

    status: int
    reason: str
    message: str


@dataclass
class StoredObject:
    """One object, as it is now."""

    bucket: str
    name: str
    data: bytes
    generation: int
    written: float
    metadata: dict[str, str]
    content_type: str

    @property
    def crc32c(self) -> str:
        """Base64, big-endian, as in Google's API."""
        return base64.b64encode(google_crc32c.value(self.data).to_bytes(4, "big")).decode()

    @property
    def md5(self) -> str:
        """Base64."""
        return base64.b64encode(hashlib.md5(self.data, usedforsecurity=False).digest()).decode()

    def resource(self) -> Json:
        """Return the object's metadata, as in the JSON API."""
        return {
            "kind": "storage#object",
            "id": f"{self.bucket}/{self.name}/{self.generation}",
            "name": self.name,
            "bucket": self.bucket,
            "generation": str(self.generation),
            "metageneration": "1",
            "contentType": self.content_type,
            "storageClass": "STANDARD",
            "size": str(len(self.data)),
            "md5Hash": self.md5,
            "crc32c": self.crc32c,
            "etag": self.etag,
            "timeCreated": rfc3339(self.written),
            "updated": rfc3339(self.written),
            **({"metadata": self.metadata} if self.metadata else {}),
        }

    @property
    def etag(self) -> str:
        """One for each generation."""
        return base64.b64encode(f"{self.generation}".encode()).decode()


@dataclass
class Upload:
    """A resumable upload that has begun."""

    bucket: str
    resource: Json
    query: dict[str, str]
    data: bytearray = field(default_factory=bytearray)
    finished: Json | None = None


class Buckets:
    """All buckets, and the unfinished uploads."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, StoredObject]] = {}
        self.uploads: dict[str, Upload] = {}
        self.forbidden: set[str] = set()
        """Buckets that nobody may use."""
        self.skew = 0.0
        """How far the server's clock is ahead of this machine's, in seconds."""
        self._generations = itertools.count(int(time.time() * 1e6))

    def now(self) -> float:
        """The server's time."""
        return time.time() + self.skew

    def bucket(self, name: str) -> dict[str, StoredObject]:
        """The objects of a bucket."""
        if name in self.forbidden:
            raise Refusal(403, "forbidden", f"caller does not have access to the Google Cloud Storage bucket {name}.")
        if name not in self.objects:
            raise Refusal(404, "notFound", "The specified bucket does not exist.")
        return self.objects[name]

    def get(self, bucket: str, name: str, query: dict[str, str]) -> StoredObject:
        """Return one object, if it fits the preconditions."""
        found = self.bucket(bucket).get(name)
        wanted = query.get("generation")
        if found is None or (wanted is not None and int(wanted) != found.generation):
            raise Refusal(404, "notFound", f"No such object: {bucket}/{name}")
        _require(found, query)
        return found

    def insert(self, bucket: str, resource: Json, data: bytes, query: dict[str, str], content_type: str) -> Json:
        """Store an object in one request, over any object with its name."""
        objects, name = self.bucket(bucket), resource.get("name") or query.get("name", "")
        if not name:
            raise Refusal(400, "required", "Required")
        before = objects.get(name)
        _require(before, query)
        content_type, metadata = resource.get("contentType") or content_type, dict(resource.get("metadata") or {})
        stored = StoredObject(bucket, name, data, next(self._generations), self.now(), metadata, content_type)
        for field_name, holds in (("crc32c", stored.crc32c), ("md5Hash", stored.md5)):
            if resource.get(field_name) not in (None, holds):
                raise Refusal(400, "invalid", f"Provided {field_name} does not match the calculated {holds}.")
        objects[name] = stored
        return stored.resource()

    def start(self, bucket: str, resource: Json, query: dict[str, str]) -> str:
        """Begin a resumable upload, and return its id."""
        objects = self.bucket(bucket)
        name = resource.get("name") or query.get("name", "")
        _require(objects.get(name), query)
        upload_id = f"upload-{next(self._generations)}"
        self.uploads[upload_id] = Upload(bucket, {**resource, "name": name}, query)
        return upload_id

    def append(self, upload_id: str, begin: int, chunk: bytes, total: int | None) -> Upload:
        """Accept a chunk. The object appears with the last one."""
        upload = self.upload(upload_id)
        if upload.finished is None:
            if begin > len(upload.data):
                raise Refusal(503, "backendError", f"{len(upload.data)} bytes are here, the chunk begins at {begin}")
            upload.data[begin:] = chunk
            if total == len(upload.data):
                data = bytes(upload.data)
                upload.finished = self.insert(upload.bucket, upload.resource, data, upload.query, "")
            elif len(upload.data) % (256 * 1024):
                raise Refusal(400, "badRequest", "Chunks must be multiples of 256 KiB, except the last.")
        return upload

    def upload(self, upload_id: str) -> Upload:
        """A resumable upload, finished or not."""
        if upload_id not in self.uploads:
            raise Refusal(404, "notFound", f"No such upload: {upload_id}")
        return self.uploads[upload_id]

    def delete(self, bucket: str, name: str, query: dict[str, str]) -> None:
        """Delete an object, if it fits the preconditions."""
        objects = self.bucket(bucket)
        found = objects.get(name)
        if found is None:
            raise Refusal(404, "notFound", f"No such object: {bucket}/{name}")
        _require(found, query)
        del objects[name]

    def list(self, bucket: str, query: dict[str, str], page_size: int) -> Json:
        """A page of names, in order; below a delimiter, only the folders."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        entries: dict[str, StoredObject | None] = {}
        for name, stored in sorted(self.bucket(bucket).items()):
            if not name.startswith(prefix) or name < query.get("startOffset", ""):
                continue
            rest = name[len(prefix) :]
            folder = delimiter in rest if delimiter else False
            entries[prefix + rest.split(delimiter)[0] + delimiter if folder else name] = None if folder else stored
        after = base64.urlsafe_b64decode(query.get("pageToken", "")).decode()
        names = [name for name in sorted(entries) if name > after]
        page = names[: min(page_size, int(query.get("maxResults", page_size)))]
        answer: Json = {"kind": "storage#objects"}
        if items := [stored.resource() for name in page if (stored := entries[name]) is not None]:
            answer["items"] = items
        if prefixes := [name for name in page if entries[name] is None]:
            answer["prefixes"] = prefixes
        if len(page) < len(names):
            answer["nextPageToken"] = base64.urlsafe_b64encode(page[-1].encode()).decode()
        return answer


def rfc3339(seconds: float) -> str:
    """Write a time as Google does: milliseconds, Z."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _require(found: StoredObject | None, query: dict[str, str]) -> None:
    asked = {name: value for name, value in query.items() if name.startswith("if")}
    generation = asked.pop("ifGenerationMatch", None)
    if asked:
        raise Refusal(501, "notImplemented", f"Preconditions {asked}")
    if generation not in (None, "0" if found is None else str(found.generation)):
        raise Refusal(412, "conditionNotMet", "At least one of the pre-conditions you specified did not hold.")
