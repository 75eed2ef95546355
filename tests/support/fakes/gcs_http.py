"""The wire format of Google Cloud Storage's JSON API: answers, errors, multipart bodies, ranges,
hashes.
"""

import json
import re
from email import message_from_bytes, policy

from fakes.gcs_objects import Json, Refusal, StoredObject

Answer = tuple[int, dict[str, str], bytes]
"""Status, headers, body."""


def as_json(answer: Json) -> Answer:
    return 200, {"Content-Type": "application/json; charset=UTF-8"}, json.dumps(answer).encode()


def error(refusal: Refusal) -> bytes:
    details = [{"message": refusal.message, "domain": "global", "reason": refusal.reason}]
    return json.dumps({"error": {"code": refusal.status, "message": refusal.message, "errors": details}}).encode()


def how_far(finished: Json | None, received: int) -> Answer:
    if finished is not None:
        return as_json(finished)
    return 308, {"Range": f"bytes=0-{received - 1}"} if received else {}, b""


def multipart(body: bytes, content_type: str) -> tuple[Json, bytes, str]:
    """The two parts of a multipart upload: the resource and the content."""
    boundary = message_from_bytes(f"Content-Type: {content_type}\r\n\r\n".encode(), policy=policy.HTTP).get_boundary()
    first, second = body.split(f"--{boundary}".encode(), 2)[1:]
    second = second[: second.rindex(f"--{boundary}--".encode())]
    resource = first.partition(b"\r\n\r\n")[2]
    header, _, data = second.removeprefix(b"\r\n").partition(b"\r\n\r\n")
    own_type = re.search(rb"(?i)content-type:\s*([^\r\n]+)", header)
    return json.loads(resource), data.removesuffix(b"\r\n"), own_type[1].decode() if own_type else ""


def named_in(head: bytes) -> str:
    """The object's name in the first bytes of an upload's body, which begins with its resource."""
    found = re.search(rb'"name":\s*("(?:[^"\\]|\\.)*")', head)
    return str(json.loads(found[1])) if found else ""


def ranged(stored: StoredObject, asked: str | None, headers: dict[str, str]) -> Answer:
    span = re.fullmatch(r"bytes=(\d*)-(\d*)", asked or "")
    if span is None or span.groups() == ("", ""):
        return 200, headers, stored.data
    size = len(stored.data)
    first, last = span.groups()
    begin = int(first) if first else max(size - int(last), 0)
    end = min(int(last), size - 1) if first and last else size - 1
    if begin >= size:
        raise Refusal(416, "requestedRangeNotSatisfiable", "Request range not satisfiable")
    return 206, {**headers, "Content-Range": f"bytes {begin}-{end}/{size}"}, stored.data[begin : end + 1]


def flipped(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:] if data else b"\0"
