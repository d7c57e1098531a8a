"""One HTTP request and its answer, over plain ASGI, and the ways to say no."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = tuple[tuple[str, str], ...]


_READ_ON = 8  # times the limit


class Refused(Exception):  # noqa: N818 - it is an answer, not a fault
    """The answer to a request that can't be served: an HTTP status and a sentence."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after = retry_after


def busy(message: str) -> Refused:
    """Returns the refusal of a server that has all it can hold; worth another try soon."""
    return Refused(503, message, code="overloaded", retry_after=1)


def fault(message: str) -> Refused:
    """Returns the refusal that says: the request was fine, the model failed on it."""
    return Refused(500, message, code="model_fault")


def read_json(body: bytes) -> dict[str, object]:
    """Returns the JSON object in `body`; Refused (400) for anything else, `NaN` included."""
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise Refused(400, f"the body is not UTF-8 (byte {error.start})") from error
    except RecursionError as error:
        raise Refused(400, "the body is nested too deeply") from error
    except ValueError as error:
        raise Refused(400, f"the body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise Refused(400, "the body must be a JSON object")
    return value


def encode_json(value: object) -> bytes:
    """Returns `value` as JSON; half a surrogate pair becomes `?`, NaN a ValueError."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


class Gone(Exception):  # noqa: N818 - an end, not a fault
    """The client went away before its answer was complete."""


class Exchange:
    """Reads one request and answers it once."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.status = 0
        self._headers = {key.decode("latin-1"): value for key, value in scope["headers"]}
        self._receive = receive
        self._send = send

    async def body(self, limit: int) -> bytes:
        """Returns the whole body; Refused (413) above `limit` bytes, Gone when it is cut.

        A body that is too large is read on for a while and dropped: a client that still sends
        would see a broken connection instead of the answer.
        """
        if self._headers.get("content-encoding", b"identity") != b"identity":
            raise Refused(415, "a compressed body is not read here; send it plain")
        read = bytearray()
        size = 0
        more = True
        while more and size <= _READ_ON * limit:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Gone
            data = message.get("body", b"")
            size += len(data)
            if size <= limit:
                read += data
            more = message.get("more_body", False)
        if size > limit:
            raise Refused(413, f"the body has more than {limit} bytes")
        return bytes(read)

    async def reply(self, status: int, value: object, headers: Headers = ()) -> None:
        """Sends `value` as the whole answer, as JSON."""
        await self.reply_bytes(status, encode_json(value), "application/json", headers)

    async def reply_bytes(self, status: int, data: bytes, kind: str, headers: Headers = ()) -> None:
        """Sends `data` as the whole answer."""
        await self._start(
            status, (("content-type", kind), ("content-length", str(len(data))), *headers)
        )
        await self._send({"type": "http.response.body", "body": data})

    async def start_events(self) -> None:
        """Begins an answer of server-sent events."""
        await self._start(
            200,
            (("content-type", "text/event-stream; charset=utf-8"), ("cache-control", "no-cache")),
        )

    async def events(self, lines: Sequence[str], *, last: bool = False) -> None:
        """Sends one event for each of `lines`, together."""
        data = "".join(f"data: {line}\n\n" for line in lines).encode("utf-8", "replace")
        await self._send({"type": "http.response.body", "body": data, "more_body": not last})

    async def _start(self, status: int, headers: Headers) -> None:
        self.status = status
        raw = [(key.encode(), value.encode()) for key, value in headers]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def until_gone(self) -> None:
        """Returns when the client has gone away; call it after the body was read."""
        while (await self._receive())["type"] != "http.disconnect":
            await asyncio.sleep(0)
