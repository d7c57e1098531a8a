"""The API of the store's upkeep. Long work answers line by line: progress, then its result."""

from __future__ import annotations

import json
import logging
import queue
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import anyio.to_thread
from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.background import BackgroundTask

from lockgate.core.codec import to_json
from lockgate.core.digests import Digest, parse_digest
from lockgate.core.errors import LockgateError
from lockgate.core.names import check_model
from lockgate.registry.keep.bundle import export_bundle, import_bundle
from lockgate.server.api.views import version_view
from lockgate.server.wiring import Control
from lockgate.store.blobs.api import BackendOptions
from lockgate.store.blobs.open import open_blobs
from lockgate.store.packs import PackStore

Caller = Callable[..., str]
Report = Callable[[int, int], None]
_log = logging.getLogger(__name__)


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Gc(_Body):
    """How long garbage stays, in seconds; the server's setting when not given."""

    grace_s: Annotated[float, Field(ge=0)] | None = None


class Sample(_Body):
    """Which part of the objects to read, from 0 to 1, and the seed that picks it."""

    sample: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: int = 0


class Place(_Body):
    """Another backend: a folder of the server's machine or a URL; how many backups it keeps."""

    url: str = Field(min_length=1, max_length=2000)
    endpoint: str | None = None
    region: str | None = None
    allow_http: bool = False
    key_file: str | None = None
    keep: Annotated[int, Field(ge=1, le=10_000)] = 7

    def options(self) -> BackendOptions:
        """Returns how to reach it; keys come from the server's environment."""
        return BackendOptions(
            endpoint=self.endpoint,
            region=self.region,
            allow_http=self.allow_http,
            key_file=Path(self.key_file) if self.key_file else None,
        )


def router(control: Control, caller: Caller) -> APIRouter:
    """Returns the routes; `caller` names who asks."""
    api = APIRouter(tags=["store"])
    _upkeep(api, control)
    _copies(api, control)
    _frames(api, control)
    _bundles(api, control, caller)
    return api


def _upkeep(api: APIRouter, control: Control) -> None:
    @api.get("/store/usage")
    def usage() -> dict[str, Any]:
        """Returns what every version costs, alone and shared."""
        body: dict[str, Any] = to_json(control.keeper.usage())
        return body

    @api.post("/store/gc")
    def gc(body: Gc) -> StreamingResponse:
        """Sweeps what was condemned long enough ago, and condemns what is garbage now."""
        grace = control.settings.gc_grace_s if body.grace_s is None else body.grace_s
        return _told(lambda report: control.keeper.gc(report, grace_s=grace))

    @api.post("/store/verify")
    def verify(body: Sample) -> StreamingResponse:
        """Decodes every object that a version names, or a sample of them."""
        return _told(
            lambda report: control.keeper.verify(report, sample=body.sample, seed=body.seed)
        )

    @api.post("/store/optimize")
    def optimize() -> StreamingResponse:
        """Encodes anew what pays, and joins small packs."""
        return _told(control.keeper.optimize)


def _copies(api: APIRouter, control: Control) -> None:
    @api.post("/store/repair")
    def repair(body: Place) -> StreamingResponse:
        """Takes what is missing or damaged from another store or a backup."""

        def work(report: Report) -> object:
            replica = PackStore(open_blobs(body.url, body.options()), writes=False)
            try:
                return control.keeper.repair(replica, report)
            finally:
                replica.close()

        return _told(work)

    @api.post("/store/backup")
    def backup(body: Place) -> StreamingResponse:
        """Copies store and ledger to another backend; only what it does not have travels."""

        def work(report: Report) -> object:
            target = open_blobs(body.url, body.options())
            try:
                done = control.keeper.backup(target, report, keep=body.keep)
            finally:
                target.close()
            return {"name": done.name, "at": done.at, "packs": len(done.packs),
                    "bytes": sum(done.packs.values()), "copied": done.copied,
                    "position": done.position}  # fmt: skip

        return _told(work)


def _frames(api: APIRouter, control: Control) -> None:
    @api.get("/frames/{digest}")
    def frame(digest: str) -> Response:
        """Returns an object's frame as it is stored, for a node that has what it is made from."""
        data = control.store.frame_bytes(parse_digest(digest))
        return Response(data, media_type="application/octet-stream")


def _bundles(api: APIRouter, control: Control, caller: Caller) -> None:
    registry = control.registry
    actor = Depends(caller)

    @api.get("/models/{owner}/{name}/versions/{version}/bundle")
    def export(owner: str, name: str, version: str) -> FileResponse:
        """Returns a version as one file."""
        found = registry.version(f"{owner}/{name}", version)
        text = bytes(registry.objects.get(Digest(found.digest)))
        folder = tempfile.TemporaryDirectory(dir=control.home)
        path = Path(folder.name) / "bundle"
        try:
            export_bundle(found, registry.manifest(found.digest), text, control.store, path)
        except BaseException:
            folder.cleanup()
            raise
        return FileResponse(
            path, media_type="application/x-tar", background=BackgroundTask(folder.cleanup)
        )

    @api.post("/models/{owner}/{name}/versions/{version}/sums")
    def sums(owner: str, name: str, version: str) -> StreamingResponse:
        """Returns the SHA-256 of each file of a version; computed when it is first asked for."""
        model = f"{owner}/{name}"
        return _told(lambda report: control.keeper.sums(model, version, report))

    @api.post("/bundles")
    async def take(request: Request, model: str | None = None, who: str = actor) -> dict[str, Any]:
        """Makes a version of a bundle; `model` gives it another name."""
        if model is not None:
            check_model(model)
        with tempfile.TemporaryDirectory(dir=control.home) as folder:
            path = Path(folder) / "bundle"
            with path.open("wb") as file:
                async for part in request.stream():
                    await anyio.to_thread.run_sync(file.write, part)

            def work() -> dict[str, Any]:
                done = import_bundle(path, registry, control.store, actor=who, model=model)
                name = done.version.published.model
                return {**version_view(done.version, registry.model(name)),
                        "created": done.created}  # fmt: skip

            return await anyio.to_thread.run_sync(work)


def _told(work: Callable[[Report], object]) -> StreamingResponse:
    """Returns an answer of lines: `{"done", "total"}` now and then, `{"result"}` or `{"error"}`."""
    lines: queue.Queue[dict[str, object]] = queue.Queue()

    def run() -> None:
        try:
            result = work(lambda done, total: lines.put({"done": done, "total": total}))
            lines.put({"result": to_json(result)})
        except LockgateError as error:
            lines.put({"error": {"code": error.code, "message": error.message,
                                 "hint": error.hint}})  # fmt: skip
        except Exception as error:  # noqa: BLE001 - the caller must be told that it ended
            _log.exception("the upkeep of the store failed")
            said = f"this is a fault of lockgate itself: {type(error).__name__}"
            lines.put(
                {"error": {"code": LockgateError.code, "hint": "see server.log", "message": said}}
            )

    def told() -> Iterator[str]:
        threading.Thread(target=run, name="upkeep").start()
        last: dict[str, object] = {}
        while not ("result" in last or "error" in last):
            last = lines.get()
            while "total" in last and not lines.empty():
                last = lines.get()
            yield json.dumps(last) + "\n"

    return StreamingResponse(told(), media_type="application/x-ndjson")
