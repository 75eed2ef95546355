"""moto's S3 server on loopback, in this process."""

from typing import Any

import requests
from fakes.loopback import Loopback, Tracked


class FakeS3(Loopback):
    """Serves while used as a context manager; starts empty."""

    def __init__(self) -> None:
        self.endpoint = self._serve_by(_moto())

    def __enter__(self) -> "FakeS3":
        super().__enter__()
        requests.post(f"{self.endpoint}/moto-api/reset", timeout=10).close()
        return self

    def make_bucket(self, name: str) -> None:
        """Make a bucket, as anyone."""
        requests.put(f"{self.endpoint}/{name}", timeout=10).close()


def _moto() -> Any:
    """moto's own ThreadedMotoServer neither waits for its threads nor closes their connections."""
    from moto.moto_server import werkzeug_app  # a second, which only tests of S3 need pay
    from werkzeug.serving import ThreadedWSGIServer

    class Server(Tracked, ThreadedWSGIServer):
        pass

    class Handler(werkzeug_app.MotoRequestHandler):
        def log(self, *_: object) -> None:
            """Say nothing."""

    application = werkzeug_app.DomainDispatcherApplication(werkzeug_app.create_backend_app)
    return Server("127.0.0.1", 0, application, Handler)
