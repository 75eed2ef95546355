"""How Google's JSON APIs speak over HTTP: JSON in and out, errors with a status and a reason."""

import json
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

Json = dict[str, Any]

_STATUS_NAMES = {400: "INVALID_ARGUMENT", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 409: "ALREADY_EXISTS"}
_STATUS_NAMES |= {429: "RESOURCE_EXHAUSTED", 503: "UNAVAILABLE"}


@dataclass
class Refusal(Exception):
    """An answer that is an error."""

    status: int
    message: str
    reason: str = ""
    name: str = ""
    """Of the status, where it is not the usual one of its number."""


class Api(Protocol):
    """What answers."""

    def answer(self, method: str, path: str, query: dict[str, str], body: Json) -> Json:
        """The answer to one request; raises Refusal."""


class Handler(BaseHTTPRequestHandler):
    """Passes each request to `api`, and writes its answer."""

    protocol_version = "HTTP/1.1"
    api: Api

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_DELETE = do_GET

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        try:
            status, answer = 200, self.api.answer(self.command, url.path, query, body)
        except Refusal as refusal:
            status, answer = refusal.status, _error(refusal)
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _error(refusal: Refusal) -> Json:
    info = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": refusal.reason, "domain": "googleapis.com"}
    details = [info] if refusal.reason else []
    status = refusal.name or _STATUS_NAMES[refusal.status]
    return {"error": {"code": refusal.status, "message": refusal.message, "status": status, "details": details}}
