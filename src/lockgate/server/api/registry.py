"""The API of the registry: objects, models, versions, aliases."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Annotated, Any

import anyio.to_thread
from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from lockgate.core.codec import from_json, to_json
from lockgate.core.digests import Digest, parse_digest
from lockgate.core.errors import IntegrityError, UsageError
from lockgate.registry import catalog, compare
from lockgate.registry.restore import verify
from lockgate.registry.service import Details
from lockgate.server.api.views import manifest_view, model_view, version_view
from lockgate.server.wiring import Control
from lockgate.store.frames import MAX_BODY, unpack

_PAGE = 10_000
_MAX_MANIFEST = 256 * 1024 * 1024
Caller = Callable[..., str]


Natural = Annotated[int, Field(ge=0, lt=2**53)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Sizes(_Body):
    """Digest → size in bytes."""

    sizes: dict[str, Annotated[int, Field(ge=0)]] = Field(max_length=100_000)


class Digests(_Body):
    """Some digests."""

    digests: list[str] = Field(max_length=1_000_000)


class Like(_Body):
    """The tensors of a folder (type, shape, how many), and versions it is said to come from."""

    tensors: list[tuple[str, tuple[Natural, ...], Natural]] = Field(max_length=100_000)
    parents: list[str] = Field(default_factory=list, max_length=64)


class Commit(_Body):
    """A manifest's text, and what the publisher says of the version."""

    manifest: str
    details: dict[str, Any] = Field(default_factory=dict)


class AliasTo(_Body):
    """Which version an alias shall name, and why."""

    version: str
    reason: str = Field(default="", max_length=4000)


def router(control: Control, caller: Caller) -> APIRouter:
    """Returns the routes; `caller` names who asks."""
    api = APIRouter(tags=["registry"])
    _objects(api, control)
    _models(api, control)
    _writes(api, control, caller)
    return api


def _objects(api: APIRouter, control: Control) -> None:
    objects = control.registry.objects

    @api.post("/objects/missing")
    def missing(body: Sizes) -> dict[str, list[str]]:
        """Returns which objects are not here whole."""
        asked = {parse_digest(digest): size for digest, size in body.sizes.items()}
        return {"missing": sorted(objects.missing(asked))}

    @api.post("/objects")
    async def put(request: Request) -> dict[str, int]:
        """Stores the objects of one body of frames, each checked against its digest."""
        body = await _read(request, MAX_BODY)
        found = list(unpack(body))
        await anyio.to_thread.run_sync(objects.put, found)
        return {"stored": len(found)}

    @api.post("/objects/flush")
    def flush(body: Digests) -> dict[str, str]:
        """Returns when the objects survive a power failure."""
        objects.flush([parse_digest(digest) for digest in body.digests])
        return {"status": "durable"}

    @api.post("/objects/discard")
    def discard(body: Digests) -> dict[str, int]:
        """Removes those objects that no version names."""
        digests = [parse_digest(digest) for digest in body.digests]
        return {"discarded": control.registry.discard(digests)}

    @api.get("/objects")
    def digests(after: str = "") -> list[str]:
        """Returns the digests of up to 10,000 objects after `after`, in order."""
        later = (digest for digest in objects.digests() if digest > after)
        return list(islice(later, _PAGE))

    @api.get("/objects/{digest}")
    def get(digest: str) -> Response:
        """Returns an object's bytes."""
        data = objects.get(Digest(parse_digest(digest)))
        return Response(bytes(data), media_type="application/octet-stream")


async def _read(request: Request, limit: int) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise UsageError(f"a body has at most {limit} bytes here")
        parts.append(part)
    return b"".join(parts)


def _models(api: APIRouter, control: Control) -> None:
    registry = control.registry

    @api.get("/models")
    def models() -> list[dict[str, Any]]:
        """Returns every model with its versions."""
        return [model_view(model) for _, model in sorted(registry.models().items())]

    @api.get("/models/{owner}/{name}")
    def model(owner: str, name: str) -> dict[str, Any]:
        """Returns one model."""
        return model_view(registry.model(f"{owner}/{name}"))

    @api.get("/models/{owner}/{name}/versions/{version}")
    def show(owner: str, name: str, version: str) -> dict[str, Any]:
        """Returns a version and its manifest."""
        found = registry.version(f"{owner}/{name}", version)
        view = version_view(found, registry.model(f"{owner}/{name}"))
        return {
            **view, "derived": to_json(found.derived), "judged": to_json(found.judged),
            "reported": to_json(found.reported),
            "manifest": manifest_view(registry.manifest(found.digest)),
        }  # fmt: skip

    @api.post("/models/{owner}/{name}/bases")
    def bases(owner: str, name: str, body: Like) -> dict[str, list[str]]:
        """Returns the versions that a folder with those tensors is most like."""
        shapes = {(dtype, shape): count for dtype, shape, count in body.tensors}
        return {"bases": list(registry.bases(f"{owner}/{name}", shapes, body.parents))}

    @api.get("/models/{owner}/{name}/diff")
    def diff(owner: str, name: str, before: str, after: str) -> dict[str, Any]:
        """Returns what changed between two versions."""
        first, second = (registry.version(f"{owner}/{name}", v) for v in (before, after))
        found = compare.diff(registry.manifest(first.digest), registry.manifest(second.digest))
        return {"before": first.number, "after": second.number, **to_json(found)}

    @api.get("/models/{owner}/{name}/versions/{version}/lineage")
    def lineage(owner: str, name: str, version: str) -> dict[str, Any]:
        """Returns what a version came from, and what came from it."""
        found = registry.version(f"{owner}/{name}", version)
        every = registry.models()
        above = [_ancestor(item, every) for item in catalog.ancestors(every, found)]
        below = [
            {"model": item.published.model, "number": item.number, "digest": item.digest}
            for item in catalog.descendants(every, found.digest)
        ]
        return {"version": found.number, "digest": found.digest, "from": above, "into": below}

    @api.get("/models/{owner}/{name}/versions/{version}/damages")
    def damages(owner: str, name: str, version: str) -> dict[str, Any]:
        """Reads every byte of a version; returns the artifacts that are hurt."""
        found = registry.version(f"{owner}/{name}", version)
        hurt = verify(registry.manifest(found.digest), registry.objects)
        return {"version": found.number, "digest": found.digest, "damages": to_json(hurt)}


def _ancestor(item: catalog.Ancestor, every: Any) -> dict[str, Any]:
    model = every.get(item.edge.model)
    parent = model.by_digest(item.edge.digest) if model else None
    return {
        "relation": item.edge.relation,
        "model": item.edge.model,
        "digest": item.edge.digest,
        "number": parent.number if parent else None,
        "child": item.child,
        "depth": item.depth,
    }


def _writes(api: APIRouter, control: Control, caller: Caller) -> None:
    registry = control.registry
    actor = Depends(caller)

    @api.post("/models/{owner}/{name}/versions")
    async def commit(owner: str, name: str, request: Request, who: str = actor) -> dict[str, Any]:
        """Makes a version true; the same content again is the same version."""
        body = Commit.model_validate_json(await _read(request, _MAX_MANIFEST))
        details = _details(body.details)

        def work() -> dict[str, Any]:
            text = body.manifest.encode("utf-8", errors="surrogatepass")
            done = registry.commit(f"{owner}/{name}", text, details, actor=who)
            view = version_view(done.version, registry.model(f"{owner}/{name}"))
            return {**view, "created": done.created}

        return await anyio.to_thread.run_sync(work)

    @api.put("/models/{owner}/{name}/aliases/{alias}")
    def move(owner: str, name: str, alias: str, body: AliasTo, who: str = actor) -> dict[str, Any]:
        """Makes an alias name a version."""
        model = f"{owner}/{name}"
        found = registry.move_alias(model, alias, body.version, actor=who, reason=body.reason)
        return version_view(found, registry.model(model))


def _details(body: dict[str, Any]) -> Details:
    try:
        details = from_json(Details, body)
    except IntegrityError as error:
        raise UsageError(f"the details can't be used: {error.message}") from error
    return details
