"""The metadata server of a Google Cloud VM, and the bucket that its account can read, on loopback.

    GET /computeMetadata/v1/instance/attributes/{name}                the attribute, or 404
    GET /computeMetadata/v1/instance/service-accounts/default/token   an access token
    GET /storage/v1/b/{bucket}/o/{object}?alt=media                   an object, for that token only

Like the real one, it refuses questions about metadata without `Metadata-Flavor: Google`.
"""

import json
from http.server import BaseHTTPRequestHandler
from urllib.parse import unquote, urlsplit

from fakes.loopback import Loopback

_INSTANCE = "/computeMetadata/v1/instance/"
_TOKEN = "token-of-the-vm"


class FakeMetadata(Loopback):
    """Serves while used as a context manager."""

    def __init__(self) -> None:
        self.attributes: dict[str, str] = {}
        self.objects: dict[tuple[str, str], bytes] = {}
        """(bucket, name) -> content."""
        self.outages = 0
        """How many of the next requests are answered with 503."""
        self.address = self._serve(_Handler, fake=self)

    def answer(self, path: str, flavor: str | None, authorization: str | None) -> tuple[int, bytes]:
        """Status and content for one request."""
        if self.outages:
            self.outages -= 1
            return 503, b"come back later"
        if path.startswith("/storage/v1/b/"):
            bucket, name = path.removeprefix("/storage/v1/b/").split("/o/")
            if authorization != f"Bearer {_TOKEN}":
                return 401, b"who are you?"
            content = self.objects.get((bucket, unquote(name)))
            return (404, b"no such object") if content is None else (200, content)
        if flavor != "Google":
            return 403, b"Missing Metadata-Flavor:Google header."
        if path == f"{_INSTANCE}service-accounts/default/token":
            return 200, json.dumps({"access_token": _TOKEN, "expires_in": 3599, "token_type": "Bearer"}).encode()
        value = self.attributes.get(path.removeprefix(f"{_INSTANCE}attributes/"))
        return (404, b"not found") if value is None else (200, value.encode())


class _Handler(BaseHTTPRequestHandler):
    fake: FakeMetadata

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        status, content = self.fake.answer(path, self.headers.get("Metadata-Flavor"), self.headers.get("Authorization"))
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""
