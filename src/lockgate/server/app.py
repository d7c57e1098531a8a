"""The HTTP application: errors as sentences, one door, routers by noun."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import anyio.to_thread
from fastapi import Depends, FastAPI, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from lockgate._version import __version__
from lockgate.core.errors import LockgateError, NotFoundError, SpecError, UsageError
from lockgate.server.access import principal
from lockgate.server.api import derived, hooks, registry, release, store, system
from lockgate.server.door import Door
from lockgate.server.wiring import Control

_THREADS = 64


def create_app(control: Control) -> FastAPI:
    """Returns the API over `control`: below /api/v1 by token, reports of hooks by signature."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = _THREADS
        yield

    def caller(
        authorization: Annotated[str | None, Header()] = None,
        lockgate_actor: Annotated[str | None, Header()] = None,
    ) -> str:
        return principal(control.token, authorization, lockgate_actor)

    app = FastAPI(
        title="lockgate", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.add_middleware(Door, token=control.token)
    app.add_exception_handler(LockgateError, _on_error)
    app.add_exception_handler(Exception, _on_fault)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(ValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    for module in (registry, derived, release, store, hooks, system):
        router = module.router(control, caller)
        app.include_router(router, prefix="/api/v1", dependencies=[Depends(caller)])

    app.include_router(hooks.reports(control))

    @app.get("/health")
    def health() -> dict[str, str]:
        """Says that the server answers; needs no token."""
        return {"status": "ok", "version": __version__}

    return app


def error_body(error: LockgateError) -> dict[str, object]:
    """Returns the wire form of an error: code, message, hint, docs, and a spec's problems."""
    body: dict[str, object] = {
        "code": error.code,
        "message": error.message,
        "hint": error.hint,
        "docs": error.docs,
    }
    if isinstance(error, SpecError):
        body["problems"] = [
            {"path": p.path, "message": p.message, "line": p.line} for p in error.problems
        ]
    return {"error": body}


async def _on_error(_: Request, error: Exception) -> JSONResponse:
    found = error if isinstance(error, LockgateError) else LockgateError(str(error))
    return JSONResponse(error_body(found), status_code=found.http_status)


async def _on_fault(_: Request, error: Exception) -> JSONResponse:
    found = LockgateError(
        f"this is a fault of lockgate itself: {type(error).__name__}", hint="see server.log"
    )
    return JSONResponse(error_body(found), status_code=found.http_status)


async def _on_invalid(_: Request, error: Exception) -> JSONResponse:
    known = isinstance(error, RequestValidationError | ValidationError)
    details = error.errors() if known else []  # type: ignore[attr-defined]
    said = "; ".join(
        f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in details[:5]
    )
    found = UsageError(f"the request is not valid: {said}", hint="docs/http-api.md has every body")
    return JSONResponse(error_body(found), status_code=found.http_status)


async def _on_http(request: Request, error: Exception) -> JSONResponse:
    status = error.status_code if isinstance(error, HTTPException) else 500
    kind = NotFoundError if status == 404 else UsageError
    said = f"there is nothing at {request.method} {request.url.path}"
    return JSONResponse(error_body(kind(said)), status_code=status)
