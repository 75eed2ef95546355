"""What every server of the tests does: it listens on loopback and leaves nothing behind.

At the end of the block, it accepts no new connection, shuts those that are open, and waits for each
thread that served one. If a client hangs up or is killed, or its server has ended, no traceback is
printed.
"""

import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import BaseServer, ThreadingMixIn
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T", bound="Loopback")

_POLL_SECONDS = 0.01


class Tracked(ThreadingMixIn, BaseServer):
    """Mixed into a server: serves each connection in a thread, and knows those that are open."""

    daemon_threads = False  # or the server would not wait for them
    request_queue_size = 64
    socket: socket.socket

    def __init__(self, *arguments: Any, **more: Any) -> None:
        self._open: set[socket.socket] = set()
        self._changing = threading.Lock()
        super().__init__(*arguments, **more)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._changing:
            self._open.add(request)
        super().process_request(request, client_address)

    def close_request(self, request: Any) -> None:
        with self._changing:
            self._open.discard(request)
        super().close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a connection that is gone, but not a mistake in the server."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def end(self) -> None:
        """Stop serving, and wait for every thread."""
        self.shutdown()
        self.socket.close()
        with self._changing:
            for connection in self._open:
                _shut(connection)
        self.server_close()


class HttpServer(Tracked, HTTPServer):
    """Serves HTTP."""


class Loopback:
    """Serves in a thread while used as a context manager."""

    def _serve(self, handler: type[BaseHTTPRequestHandler], **known: object) -> str:
        """Let requests go to `handler`, which gets `known` as attributes; returns the address."""
        return self._serve_by(HttpServer(("127.0.0.1", 0), type("Handler", (handler,), known)))

    def _serve_by(self, server: Any) -> str:
        self._server = server
        self._thread = threading.Thread(target=server.serve_forever, args=(_POLL_SECONDS,), name=type(self).__name__)
        self.ending = threading.Event()
        """Set when the server ends, for whoever waits in it."""
        return f"http://127.0.0.1:{server.server_port}"

    def __enter__(self: T) -> T:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.ending.set()
        self._server.end()
        self._thread.join()


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:  # the client was faster
        return
