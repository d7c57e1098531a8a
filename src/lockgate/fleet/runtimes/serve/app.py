"""The application of a serving process: health, metrics, drain, and one service behind them."""

from __future__ import annotations

import asyncio
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Protocol

from lockgate.fleet.runtimes.serve.exchange import (
    Exchange,
    Gone,
    Headers,
    Receive,
    Refused,
    Scope,
    Send,
    fault,
)
from lockgate.fleet.runtimes.serve.metrics import Metrics

DRAIN_NOTICE_S = 0.25
"""How long a draining server stays at least, so that a health check can see its 503."""

_METRICS_KIND = "text/plain; version=0.0.4; charset=utf-8"
_HEALTH = ("/health", "/v2/health/live", "/v2/health/ready")


class Service(Protocol):
    """One API over one loaded model."""

    def open(self) -> None:
        """Gets ready to serve."""
        ...

    def close(self) -> None:
        """Lets everything go."""
        ...

    def route(self, path: str) -> tuple[str, str] | None:
        """Returns the route's name (a metric's label) and its method, None for no route."""
        ...

    def error(self, refused: Refused) -> Mapping[str, object]:
        """Returns the body of an error."""
        ...

    async def serve(self, route: str, exchange: Exchange, began: float) -> None:
        """Answers one request, or raises Refused before any of the answer was sent."""
        ...


class App:
    """An ASGI application. After `drain`, new requests get 503 and running ones finish."""

    def __init__(self, service: Service, metrics: Metrics, *, started: Callable[[], None]) -> None:
        self._service = service
        self._metrics = metrics
        self._started = started
        self._draining = False
        self._inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection's scope."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._answer(Exchange(scope, receive, send))

    async def drain(self) -> None:
        """Refuses new requests; returns when the running ones are done."""
        self._draining = True
        await asyncio.sleep(DRAIN_NOTICE_S)
        while self._inside:
            await asyncio.sleep(0.02)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        self._service.open()
        self._started()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self._service.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _answer(self, exchange: Exchange) -> None:
        if exchange.path == "/metrics":
            await exchange.reply_bytes(200, self._metrics.text(), _METRICS_KIND)
        elif exchange.path == "/health" or (self._draining and exchange.path in _HEALTH):
            state = "draining" if self._draining else "ok"
            await exchange.reply(503 if self._draining else 200, {"status": state})
        else:
            await self._counted(exchange)

    async def _counted(self, exchange: Exchange) -> None:
        began = time.monotonic()
        found = self._service.route(exchange.path)
        route = found[0] if found else "other"
        self._inside += 1
        try:
            self._check(exchange, found)
            await self._service.serve(route, exchange, began)
        except Refused as refused:
            await self._refuse(exchange, refused)
        except (Gone, OSError):
            exchange.status = exchange.status or 499
        except Exception as error:  # noqa: BLE001 - a bug answers 500 and is seen in the log
            traceback.print_exc(file=sys.stderr)
            await self._refuse(exchange, fault(f"the server failed: {type(error).__name__}"))
        finally:
            self._inside -= 1
            self._metrics.answered(route, exchange.status, time.monotonic() - began)

    def _check(self, exchange: Exchange, found: tuple[str, str] | None) -> None:
        if self._draining:
            raise Refused(503, "this replica is draining", code="draining", retry_after=1)
        if found is None:
            raise Refused(404, f"there is no {exchange.path[:200]!r} here")
        if exchange.method != found[1]:
            raise Refused(405, f"use {found[1]} for {exchange.path[:200]!r}")

    async def _refuse(self, exchange: Exchange, refused: Refused) -> None:
        """Sends an error; one that comes in the middle of a stream can only be counted."""
        if exchange.status:
            exchange.status = refused.status
            return
        headers: Headers = ()
        if refused.retry_after:
            headers = (("retry-after", str(refused.retry_after)),)
        if self._draining or refused.status == 413:
            headers = (*headers, ("connection", "close"))
        await exchange.reply(refused.status, self._service.error(refused), headers)
