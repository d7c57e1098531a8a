"""The API of what runs: routes, replicas, samples, the audit, metrics."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Query, Response

from lockgate._version import __version__
from lockgate.core.codec import to_json
from lockgate.core.errors import UsageError
from lockgate.ledger.api import Head
from lockgate.ledger.chain import verify
from lockgate.server.api.metrics import render
from lockgate.server.api.series import series
from lockgate.server.api.views import event_view, replica_view, route_view, short_names
from lockgate.server.wiring import Control

Caller = Callable[..., str]
_MAX_POSITION = 2**62


def router(control: Control, caller: Caller) -> APIRouter:  # noqa: ARG001 - reads need no name
    """Returns the routes."""
    api = APIRouter(tags=["system"])
    _running(api, control)
    _audit(api, control)
    return api


def _running(api: APIRouter, control: Control) -> None:
    @api.get("/status")
    def status() -> dict[str, Any]:
        """Returns the server, its gateway's address and what serves."""
        view = control.gateway.view()
        routes = control.engine.book().routes.values()
        return {
            "version": __version__,
            "now": control.clock.now(),
            "home": str(control.home),
            "gateway": view.address,
            "proxies": view.proxies,
            "routes": [route_view(route, view, control.engine.trouble) for route in routes],
        }

    @api.get("/replicas")
    def replicas() -> list[dict[str, Any]]:
        """Returns every replica in any state."""
        return [replica_view(replica) for replica in control.fleet.replicas()]

    @api.get("/totals")
    def totals() -> list[dict[str, Any]]:
        """Returns how many requests each version got, and how many failed."""
        found: list[dict[str, Any]] = to_json(control.samples.totals())
        return found

    @api.get("/series/{owner}/{name}/{target}")
    def chart(
        owner: str,
        name: str,
        target: str,
        since: float = 0.0,
        slot: float = Query(default=1.0, ge=0.1, le=86_400.0),
    ) -> list[dict[str, Any]]:
        """Returns requests, failures and latency per version and time slot (seconds)."""
        rows = control.samples.window(f"{owner}/{name}@{target}", since=since)
        return series(rows, slot)

    @api.get("/metrics")
    def metrics() -> Response:
        """Returns the metrics page for Prometheus."""
        return Response(render(control), media_type="text/plain; version=0.0.4; charset=utf-8")


def _audit(api: APIRouter, control: Control) -> None:
    @api.get("/audit")
    def audit(
        stream: str | None = None,
        after: int = Query(default=0, ge=0, le=_MAX_POSITION),
        limit: int = Query(default=1000, ge=1, le=10_000),
    ) -> list[dict[str, Any]]:
        """Returns events in order, each with its sentence."""
        found = control.ledger.read(stream=stream, after=after, limit=limit)
        names = short_names(control.registry.models())
        return [event_view(recorded, names) for recorded in found]

    @api.get("/audit/verify")
    def check(anchor: str | None = None) -> dict[str, Any]:
        """Checks the hash chain; `anchor` (`position:hash`) is a head that was kept elsewhere."""
        head = control.ledger.head()
        findings = verify(control.ledger.rows(), head, _anchor(anchor))
        return {
            "events": head.position,
            "head": f"{head.position}:{head.hash}",
            "findings": to_json(findings),
        }


def _anchor(text: str | None) -> Head | None:
    if text is None:
        return None
    position, _, digest = text.partition(":")
    if not re.fullmatch(r"[0-9]{1,18}", position) or len(digest) != 64:
        raise UsageError("an anchor is 'position:hash', as 'lockgate audit --verify' prints it")
    return Head(position=int(position), hash=digest)
