"""A receiver of messages over real HTTP, as good or as bad as a test wants it."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from lockgate.server.hooks.signature import Secret, read_claim, verify

Behave = Callable[["Handler"], None]


@dataclass(frozen=True)
class Got:
    """One request: when which path got what."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Handler(BaseHTTPRequestHandler):
    """Keeps what came, then does what its server's `behave` says."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        owner: Receiver = self.server.owner  # type: ignore[attr-defined]
        owner.got.append(Got(self.path, headers, body))
        try:
            owner.behave(self)
        except OSError:
            self.close_connection = True

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@dataclass
class Receiver:
    """An HTTP server on a port that it keeps when it goes down and comes up again."""

    behave: Behave = lambda handler: handler.answer(204)
    got: list[Got] = field(default_factory=list)
    port: int = 0
    context: ssl.SSLContext | None = None

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def up(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        if self.context is not None:
            self._server.socket = self.context.wrap_socket(self._server.socket, server_side=True)
        self._server.owner = self  # type: ignore[attr-defined]
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}
        )
        self._thread.start()

    def down(self) -> None:
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()

    @property
    def url(self) -> str:
        scheme = "http" if self.context is None else "https"
        return f"{scheme}://127.0.0.1:{self.port}/hook?token=not-shown"

    def check(self, secret: Secret) -> None:
        """Every message so far has a signature that fits."""
        for got in self.got:
            claim = read_claim(got.headers, float(got.headers["webhook-timestamp"]))
            verify([secret], claim, got.body)
