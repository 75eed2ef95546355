"""Google Cloud Storage's JSON API on loopback, for `google-cloud-storage` and `gcsfs` as they are
installed.

    with FakeGcs("bucket") as gcs:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.endpoint)

    POST, PUT   /upload/storage/v1/b/{b}/o?uploadType=media|multipart|resumable
    GET         /storage/v1/b/{b}/o                  listing; prefix, delimiter, pages
    GET, DELETE /storage/v1/b/{b}/o/{name}           metadata; alt=media: content, also ranges
    GET         /download/storage/v1/b/{b}/o/{name}  content
    GET         /storage/v1/b/{b}

That is what Layertap asks for; anything else is answered with 501, so that it shows.

Preconditions, checksums and consistency are Google's (gcs_objects.py), faults are planned by the
test (gcs_faults.py). Why not an emulator from the package index: gcp-storage-emulator ignores
`ifGenerationMatch`, so that of eight racing creators all win; fake-gcs-server needs Go; none of
them fails on demand.
"""

import json
import re
import socket
import struct
import threading
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit

from content import Content
from fakes.gcs_faults import Fault, Faults, Request
from fakes.gcs_http import Answer, as_json, error, flipped, how_far, multipart, named_in, ranged
from fakes.gcs_objects import Buckets, Refusal
from fakes.loopback import Loopback

_PATH = re.compile(r"/(?:(upload|download)/)?storage/v1/b/([^/]+)(/o)?(?:/([^/]+))?")

_HEAD = 4096  # bytes of a body that are read before it is decided what goes wrong


class FakeGcs(Loopback):
    """Serves while used as a context manager."""

    def __init__(self, *buckets: str, page_size: int = 1000) -> None:
        self.lock = threading.RLock()
        self.state = Buckets()
        self.faults = Faults()
        self.page_size = page_size
        self.sent = 0
        """Bytes of answers, without headers."""
        for bucket in buckets:
            self.state.objects[bucket] = {}
        self.endpoint = self._serve(_Handler, gcs=self)

    def contents(self, bucket: str, prefix: str = "") -> dict[str, Content]:
        """Every object below `prefix`, by the rest of its name."""
        with self.lock:
            objects = self.state.objects[bucket]
            return {
                name.removeprefix(prefix): Content(o.data) for name, o in objects.items() if name.startswith(prefix)
            }

    def put(self, bucket: str, name: str, data: bytes) -> None:
        """Add an object."""
        with self.lock:
            self.state.insert(bucket, {"name": name}, data, {}, "application/octet-stream")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    gcs: FakeGcs

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def date_time_string(self, timestamp: float | None = None) -> str:
        return formatdate(self.gcs.state.now() if timestamp is None else timestamp, usegmt=True)

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self._query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        match = _PATH.fullmatch(url.path)
        service, bucket, objects, name = match.groups() if match else (None,) * 4
        self._bucket, self._name = bucket or "", unquote(name or "")
        operation = self._operation(service, objects)
        if service == "upload" and not self._name:
            upload = self.gcs.state.uploads.get(self._query.get("upload_id", ""))
            self._name = str(upload.resource["name"]) if upload else self._query.get("name", "")
        self._serve(operation)

    do_POST = do_PUT = do_DELETE = do_PATCH = do_GET

    def _operation(self, service: str | None, objects: str | None) -> str:
        if service == "upload":
            if self._query.get("uploadType") != "resumable" and "upload_id" not in self._query:
                return "insert"
            if "upload_id" not in self._query:
                return "start"
            asked = (self.headers.get("Content-Range") or "").startswith("bytes */")
            return "unknown" if self.command == "DELETE" else "progress" if asked else "chunk"
        if objects is None:
            return "bucket" if self._bucket else "unknown"
        if not self._name:
            return "list"
        if self.command == "GET":
            return "media" if service == "download" or self._query.get("alt") == "media" else "stat"
        return "delete" if self.command == "DELETE" else "unknown"

    def _serve(self, operation: str) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(min(length, _HEAD))
        if operation in ("insert", "start") and not self._name:
            self._name = named_in(body)
        fault = self.gcs.faults.strike(operation, self._name)
        if fault and fault.kind == "reset" and operation != "media":
            self.rfile.read((length - len(body)) // 2)
            return self._end(operation, length, 0, fault, reset=True)
        body += self.rfile.read(length - len(body))
        if len(body) < length:  # the client was killed while it sent
            return self._end(operation, length, 0, fault, reset=True)
        if fault and fault.kind == "slow":
            self.gcs.ending.wait(fault.seconds)
        if fault and fault.kind == "call" and fault.action() is True:
            return self._end(operation, length, 0, fault, reset=True)
        status, headers, content = self._answer(operation, body, fault)
        if fault and fault.kind == "call_after":
            fault.action()
        if fault and fault.kind == "lose" and status < 400:
            status, headers, content = fault.status, {}, error(Refusal(fault.status, "backendError", "lost"))
        vanished = fault is not None and fault.kind == "vanish"
        self._note(operation, length, 0 if vanished else status, fault)  # once answered, a client may look at the log
        if not vanished:
            self._send(status, headers, content, operation, fault)
        return self._close(fault, reset=vanished)

    def _answer(self, operation: str, body: bytes, fault: Fault | None) -> Answer:
        if fault and fault.kind == "refuse":
            return fault.status, {}, error(Refusal(fault.status, "backendError", "refused on demand"))
        if fault and fault.kind == "corrupt" and operation == "chunk":
            body = flipped(body)
        try:
            with self.gcs.lock:
                method = getattr(self, f"_on_{operation}", None)
                if method is None or "X-Goog-Hash" in self.headers:
                    raise Refusal(501, "notImplemented", f"{self.command} {self.path}")
                return method(body, fault)
        except Refusal as refusal:
            return refusal.status, {}, error(refusal)

    def _on_bucket(self, body: bytes, _: Fault | None) -> Answer:
        self.gcs.state.bucket(self._bucket)
        return as_json({"kind": "storage#bucket", "name": self._bucket, "id": self._bucket, "location": "US"})

    def _on_list(self, body: bytes, _: Fault | None) -> Answer:
        return as_json(self.gcs.state.list(self._bucket, self._query, self.gcs.page_size))

    def _on_stat(self, body: bytes, _: Fault | None) -> Answer:
        return as_json(self.gcs.state.get(self._bucket, self._name, self._query).resource())

    def _on_delete(self, body: bytes, _: Fault | None) -> Answer:
        self.gcs.state.delete(self._bucket, self._name, self._query)
        return 204, {}, b""

    def _on_media(self, body: bytes, _: Fault | None) -> Answer:
        stored = self.gcs.state.get(self._bucket, self._name, self._query)
        headers = {
            "Content-Type": stored.content_type,
            "X-Goog-Hash": f"crc32c={stored.crc32c},md5={stored.md5}",
            "X-Goog-Generation": str(stored.generation),
            "ETag": stored.etag,
        }
        return ranged(stored, self.headers.get("Range"), headers)

    def _on_insert(self, body: bytes, fault: Fault | None) -> Answer:
        content_type = self.headers.get("Content-Type", "application/octet-stream")
        multiple = content_type.startswith("multipart/related")
        resource, data, own_type = multipart(body, content_type) if multiple else ({}, body, content_type)
        if fault and fault.kind == "corrupt":
            data = flipped(data)
        return as_json(self.gcs.state.insert(self._bucket, resource, data, self._query, own_type))

    def _on_start(self, body: bytes, _: Fault | None) -> Answer:
        upload_id = self.gcs.state.start(self._bucket, json.loads(body or b"{}"), self._query)
        place = f"{self.gcs.endpoint}/upload/storage/v1/b/{self._bucket}/o?uploadType=resumable&upload_id={upload_id}"
        return 200, {"Location": place, "X-GUploader-UploadID": upload_id}, b""

    def _on_chunk(self, body: bytes, _: Fault | None) -> Answer:
        span = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", self.headers.get("Content-Range") or "")
        begin, end, total = span.groups() if span else ("0", str(len(body) - 1), str(len(body)))
        if int(end) - int(begin) + 1 != len(body):
            raise Refusal(400, "badRequest", "Content-Range does not fit the body")
        upload = self.gcs.state.append(self._query["upload_id"], int(begin), body, None if total == "*" else int(total))
        return how_far(upload.finished, len(upload.data))

    def _on_progress(self, body: bytes, _: Fault | None) -> Answer:
        total = (self.headers.get("Content-Range") or "bytes */*").rpartition("/")[2]
        upload = self.gcs.state.upload(self._query["upload_id"])
        if total == str(len(upload.data)):  # to name the length of what is there is to end the upload
            upload = self.gcs.state.append(self._query["upload_id"], len(upload.data), b"", len(upload.data))
        return how_far(upload.finished, len(upload.data))

    def _send(self, status: int, headers: dict[str, str], content: bytes, operation: str, fault: Fault | None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if fault and fault.kind == "corrupt" and operation == "media":
            content = flipped(content)
        with self.gcs.lock:
            self.gcs.sent += len(content)
        cut = fault is not None and fault.kind in ("truncate", "reset") and status < 300
        self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self.close_connection = True

    def _end(self, operation: str, size: int, status: int, fault: Fault | None, *, reset: bool) -> None:
        self._note(operation, size, status, fault)
        self._close(fault, reset=reset)

    def _note(self, operation: str, size: int, status: int, fault: Fault | None) -> None:
        self.gcs.faults.note(
            Request(operation, self._name, self._query, size, status, fault.kind if fault is not None else "")
        )

    def _close(self, fault: Fault | None, *, reset: bool) -> None:
        if reset or (fault is not None and fault.kind == "reset"):
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
