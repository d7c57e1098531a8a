"""One try to hand over a message: bounded in time and bytes, and never sent on."""

from __future__ import annotations

import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass

import anyio
import httpx2

from lockgate._version import __version__

_READ_BYTES = 2048
_SHOWN = 200
_MAX_RETRY_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Whether the receiver took it; `said` is a sentence, `retry_in` what it asked for (seconds).

    `status` is 0 without an answer.
    """

    ok: bool
    status: int
    said: str
    seconds: float
    retry_in: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Receiver:
    """Where messages go, and what is known of certificates."""

    url: str
    timeout_s: float
    context: ssl.SSLContext


def receiver(url: str, timeout_s: float) -> Receiver:
    """Returns the receiver at `url`; certificates are checked against the system's authorities."""
    return Receiver(url=url, timeout_s=timeout_s, context=ssl.create_default_context())


def post(to: Receiver, headers: Mapping[str, str], body: bytes) -> Answer:
    """Sends `body` once. Any 2xx is yes; everything else, a redirect too, is no."""
    began = time.monotonic()
    try:
        status, text, retry_in = anyio.run(_post, to, headers, body)
    except (httpx2.HTTPError, OSError, ssl.SSLError) as error:
        return _no(0, _reason(error), began)
    except TimeoutError:
        return _no(0, f"no answer within {to.timeout_s:g} s", began)
    if 200 <= status < 300:
        seconds = time.monotonic() - began
        return Answer(ok=True, status=status, said=f"answered {status}", seconds=seconds)
    if 300 <= status < 400:
        return _no(status, f"answered {status}: redirects are not followed", began)
    return _no(status, f"answered {status}" + (f": {text}" if text else ""), began, retry_in)


def _no(status: int, said: str, began: float, retry_in: float = 0.0) -> Answer:
    seconds = time.monotonic() - began
    return Answer(ok=False, status=status, said=said, seconds=seconds, retry_in=retry_in)


def _reason(error: Exception) -> str:
    if isinstance(error, httpx2.TimeoutException):
        return "no answer in time"
    words = " ".join(str(error).split())[:_SHOWN]
    return f"no answer: {words or type(error).__name__}"


async def _post(to: Receiver, headers: Mapping[str, str], body: bytes) -> tuple[int, str, float]:
    """Returns status, the beginning of the text of a refusal, and when to come again."""
    sent = {
        "content-type": "application/json", "accept-encoding": "identity",
        "user-agent": f"lockgate/{__version__}", "connection": "close", **headers,
    }  # fmt: skip
    with anyio.fail_after(to.timeout_s):
        async with (
            httpx2.AsyncClient(
                verify=to.context, trust_env=False, follow_redirects=False,
                timeout=to.timeout_s,
            ) as client,
            client.stream("POST", to.url, content=body, headers=sent) as answer,
        ):  # fmt: skip
            text = "" if answer.is_success else await _beginning(answer)
            return answer.status_code, text, _retry_in(answer)


async def _beginning(answer: httpx2.Response) -> str:
    """Returns the first words of a body, of which two KiB and a second are read at most."""
    read = b""
    with anyio.move_on_after(1.0):
        async for part in answer.aiter_raw(_READ_BYTES):
            read += part
            if len(read) >= _READ_BYTES:
                break
    return " ".join(read.decode("utf-8", errors="replace").split())[:_SHOWN]


def _retry_in(answer: httpx2.Response) -> float:
    """Returns the seconds of a `Retry-After` header, an hour at most; 0 for none."""
    text = answer.headers.get("retry-after", "")
    whole = text.isascii() and text.isdigit() and len(text) < 10
    return min(float(text), _MAX_RETRY_S) if whole else 0.0
