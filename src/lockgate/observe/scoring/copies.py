"""Where copies of requests arrive: a small HTTP server on a socket of this machine's proxy."""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import Any

from lockgate.core.errors import TemporaryError

ROUTE_HEADER = "x-lockgate-mirror-route"
_MAX_BODY = 1 << 20
_WAITING = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """One copied request: the route it took (`name#revision`), its path, number and JSON body."""

    route: str
    path: str
    request_id: str
    body: Mapping[str, Any]


class Copies:
    """Takes copies until `close`; the newest are dropped while too many wait."""

    def __init__(self, path: Path) -> None:
        self._queue: queue.Queue[Copy] = queue.Queue(_WAITING)
        self.dropped = 0
        path.unlink(missing_ok=True)
        self._server = _Server(str(path), _handler(self._take))
        path.chmod(0o600)
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="copies", daemon=True
        )
        self._thread.start()

    def take(self, timeout_s: float) -> Copy | None:
        """Returns the next copy; None when none came in time."""
        try:
            return self._queue.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def close(self) -> None:
        """Stops to listen."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5.0)

    def _take(self, copy: Copy) -> None:
        try:
            self._queue.put_nowait(copy)
        except queue.Full:
            self.dropped += 1


class _Server(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing: a copy that is cut is no copy."""


def _handler(take: Any) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 120.0

        def address_string(self) -> str:
            return "proxy"

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            """Says nothing."""

        def do_POST(self) -> None:
            body = self._body()
            self.send_response(204)
            self.end_headers()
            with contextlib.suppress(ValueError, RecursionError, UnicodeDecodeError):
                value = json.loads(body)
                if isinstance(value, dict):
                    take(
                        Copy(
                            route=self.headers.get(ROUTE_HEADER, ""),
                            path=self.path,
                            request_id=self.headers.get("x-request-id", ""),
                            body=value,
                        )
                    )

        def do_GET(self) -> None:
            self.send_response(204)
            self.end_headers()

        def _body(self) -> bytes:
            """Returns the body; of one that is too long nothing, and the connection ends."""
            if self.headers.get("transfer-encoding", "").lower() == "chunked":
                return self._chunks()
            length = int(self.headers.get("content-length") or 0)
            if not 0 <= length <= _MAX_BODY:
                self.close_connection = True
                return b""
            return self.rfile.read(length)

        def _chunks(self) -> bytes:
            body = b""
            while size := int(self.rfile.readline(64).split(b";")[0], 16):
                if size < 0 or len(body) + size > _MAX_BODY:
                    self.close_connection = True
                    return b""
                body += self.rfile.read(size)
                self.rfile.readline(8)
            self.rfile.readline(8)
            return body

    return Handler


def check_copies(path: Path) -> None:
    """Raises TemporaryError when nobody takes copies at `path`."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError as error:
            raise TemporaryError(f"nobody takes copies at {path}: {error.strerror}") from error
