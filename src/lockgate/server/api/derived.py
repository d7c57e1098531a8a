"""The API of what steps and gates say of versions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import APIRouter, Depends

from lockgate.core.codec import from_json, to_json
from lockgate.core.digests import parse_digest
from lockgate.core.errors import IntegrityError, NotFoundError, UsageError
from lockgate.core.events import VersionDerived, VersionJudged
from lockgate.server.api.views import version_view
from lockgate.server.wiring import Control

Caller = Callable[..., str]
_Event = TypeVar("_Event", VersionDerived, VersionJudged)


def router(control: Control, caller: Caller) -> APIRouter:
    """Returns the routes; `caller` names who asks."""
    api = APIRouter(tags=["derived"])
    registry = control.registry
    actor = Depends(caller)

    @api.get("/recipes/{digest}")
    def recipe(digest: str) -> dict[str, Any]:
        """Returns the version that a recipe gives."""
        found = registry.derived(parse_digest(digest))
        if found is None:
            raise NotFoundError(f"nobody ran the recipe {digest}")
        view = version_view(found, registry.model(found.published.model))
        return {**view, "derived": to_json(found.derived)}

    @api.get("/models/{owner}/{name}/steps/{step}")
    def last_run(owner: str, name: str, step: str) -> dict[str, Any]:
        """Returns how a step made the newest version that it made."""
        found = registry.last_run(f"{owner}/{name}", step)
        if found is None:
            raise NotFoundError(f"{step} made no version of {owner}/{name}")
        told: dict[str, Any] = to_json(found)
        return told

    @api.post("/models/{owner}/{name}/versions/{version}/derived")
    def derived(
        owner: str, name: str, version: str, body: dict[str, Any], who: str = actor
    ) -> dict[str, Any]:
        """Keeps which step made a version, of what."""
        event = _event(VersionDerived, control, f"{owner}/{name}", version, body)
        return version_view(registry.record(event, actor=who), registry.model(event.model))

    @api.post("/models/{owner}/{name}/versions/{version}/judged")
    def judged(
        owner: str, name: str, version: str, body: dict[str, Any], who: str = actor
    ) -> dict[str, Any]:
        """Keeps what a gate said of a version."""
        event = _event(VersionJudged, control, f"{owner}/{name}", version, body)
        return version_view(registry.record(event, actor=who), registry.model(event.model))

    return api


def _event(
    kind: type[_Event], control: Control, model: str, version: str, body: dict[str, Any]
) -> _Event:
    found = control.registry.version(model, version)
    told = {**body, "model": model, "number": found.number, "digest": found.digest}
    try:
        return from_json(kind, told)
    except IntegrityError as error:
        raise UsageError(f"this can't be recorded: {error.message}") from error
