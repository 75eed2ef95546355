"""moto's S3 server on loopback, in this process."""

from types import TracebackType

import requests


class FakeS3:
    """Serves while used as a context manager; starts empty."""

    def __init__(self) -> None:
        from moto.server import ThreadedMotoServer  # a second, which only tests of S3 need pay

        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self.endpoint = ""

    def __enter__(self) -> "FakeS3":
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.endpoint = f"http://{host}:{port}"
        requests.post(f"{self.endpoint}/moto-api/reset", timeout=10).close()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._server.stop()

    def make_bucket(self, name: str) -> None:
        """Make a bucket, as anyone."""
        requests.put(f"{self.endpoint}/{name}", timeout=10).close()
