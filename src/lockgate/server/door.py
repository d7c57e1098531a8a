"""The door of the API: no token, no reading; and no body without end.

It stands before the routes, so that a stranger's body is not even received.
"""

from __future__ import annotations

import json

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lockgate.core.errors import DeniedError, LockgateError, UsageError
from lockgate.server.access import principal

_PREFIX = "/api/"
_MAX_JSON = 16 * 1024 * 1024
_MAX_UPLOAD = 320 * 1024 * 1024
_MAX_BUNDLE = 1 << 42
_LIMITS = (("/objects", _MAX_UPLOAD), ("/versions", _MAX_UPLOAD), ("/bundles", _MAX_BUNDLE))


class Door:
    """ASGI middleware: asks for the token, counts the body's bytes."""

    def __init__(self, app: ASGIApp, *, token: str) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request through, or answers it here."""
        if scope["type"] != "http" or not scope["path"].startswith(_PREFIX):
            await self._app(scope, receive, send)
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        try:
            principal(self._token, headers.get(b"authorization"), None)
        except DeniedError as error:
            await _answer(send, error, error.http_status)
            return
        ends = (limit for end, limit in _LIMITS if scope["path"].endswith(end))
        limit = next(ends, _MAX_JSON)
        declared = headers.get(b"content-length", "0")
        if not declared.isascii() or not declared.isdigit() or int(declared[:20]) > limit:
            await _answer(send, UsageError(f"a body has at most {limit} bytes here"), 413)
            return
        await self._app(scope, _counted(receive, limit), send)


def _counted(receive: Receive, limit: int) -> Receive:
    """Returns `receive` that raises UsageError once more than `limit` bytes have come."""
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limit:
            raise UsageError(f"a body has at most {limit} bytes here")
        return message

    return counted


async def _answer(send: Send, error: LockgateError, status: int) -> None:
    body = {"code": error.code, "message": error.message, "hint": error.hint, "docs": error.docs}
    text = json.dumps({"error": body}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(text)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text})
