"""A server that answers every request with the status in its path: `s403` means 403, `s000` means
no answer.
"""

import json
import re
from http.server import BaseHTTPRequestHandler
from threading import Event
from urllib.parse import unquote

from fakes.loopback import Loopback

_PAYS = "Bucket is a requester pays bucket but no user project provided."
_CODES = {400: "BadRequest", 401: "Unauthorized", 403: "AccessDenied", 404: "NoSuchKey", 503: "SlowDown"}


class Refusing(Loopback):
    """Serves while used as a context manager, and records the requests."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.signed = False
        """Whether any request came with credentials."""
        self.endpoint = self._serve(_Handler, server_of=self)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of: Refusing

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        path = unquote(self.path)
        self.server_of.asked.append(f"{self.command} {path}")
        self.server_of.signed |= "Authorization" in self.headers
        found = re.search(r"s(\d{3})", path)
        status = int(found[1]) if found else 404
        if status == 0:
            self._wait(self.server_of.ending)
            return
        body = self._body(status)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def _body(self, status: int) -> bytes:
        if status == 200:
            return b'{"text": "x"}\n'
        if "AWS4" in self.headers.get("Authorization", ""):
            return f"<Error><Code>{_CODES.get(status, 'Other')}</Code><Message>no</Message></Error>".encode()
        said = _PAYS if status == 400 and self.path.startswith("/storage/") else "no"
        return json.dumps({"error": {"code": status, "message": said}}).encode()

    def _wait(self, ending: Event) -> None:
        ending.wait(20)
        self.close_connection = True
