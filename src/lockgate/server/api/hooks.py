"""The API of hooks: how those that go out are getting on, and the door for signed reports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import anyio.to_thread
from fastapi import APIRouter, Depends, Request

from lockgate.core.errors import TemporaryError, UsageError
from lockgate.server.hooks.report import MAX_BODY
from lockgate.server.wiring import Control

Caller = Callable[..., str]
_READ_S = 10.0


def router(control: Control, caller: Caller) -> APIRouter:
    """Returns the routes that need the token; `caller` names who asks."""
    api = APIRouter(tags=["hooks"])
    actor = Depends(caller)

    @api.get("/hooks")
    def hooks() -> dict[str, Any]:
        """Returns every hook, out and in."""
        return control.hooks.views()

    @api.post("/hooks/{name}/test")
    def test(name: str, who: str = actor) -> dict[str, Any]:
        """Sends a test message by a hook, once."""
        answer = control.hooks.test(name, actor=who)
        if not answer.ok:
            raise TemporaryError(f"the receiver of {name} did not take it: {answer.said}")
        return {"name": name, "status": answer.status, "seconds": answer.seconds}

    return api


def reports(control: Control) -> APIRouter:
    """Returns the route for those who sign: it takes no token."""
    api = APIRouter(tags=["hooks"])

    @api.post("/v1/hooks/{name}")
    async def report(name: str, request: Request) -> dict[str, Any]:
        """Keeps what a training job reports, signed with the secret of the hook `name`."""
        headers = dict(request.headers)
        control.hooks.expects(headers)
        body = await _read(request)
        return await anyio.to_thread.run_sync(control.hooks.reported, name, headers, body)

    return api


async def _read(request: Request) -> bytes:
    parts, size = [], 0
    try:
        with anyio.fail_after(_READ_S):
            async for part in request.stream():
                size += len(part)
                if size > MAX_BODY:
                    raise UsageError(f"a report has at most {MAX_BODY} bytes")
                parts.append(part)
    except TimeoutError:
        raise UsageError(f"the body did not come within {_READ_S:g} s") from None
    return b"".join(parts)
