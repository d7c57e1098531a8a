"""The API of releases: plan, release, watch, approve, hold, resume, promote, rollback."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from lockgate.analysis.checks import Look
from lockgate.core.errors import NotFoundError, UsageError
from lockgate.ledger.api import Recorded
from lockgate.release.planner import default_spec
from lockgate.release.spec import ReleaseSpec, check_spec, parse_spec
from lockgate.release.state import Release
from lockgate.server.api.views import (
    plan_view,
    release_summary,
    release_view,
    replay_view,
    short_names,
)
from lockgate.server.outlook import LOOK_BACK_S, outlook
from lockgate.server.wiring import Control

Caller = Callable[..., str]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Asked(_Body):
    """A release, asked for by a spec's YAML text, its values, or a model, version and target."""

    yaml: str | None = None
    spec: dict[str, Any] | None = None
    model: str | None = None
    version: str | None = None
    target: str = "local"
    replicas: int | None = Field(default=None, ge=1, le=1000)
    runtime: dict[str, Any] | None = None
    plan: str | None = None
    supersede: bool = False
    reason: str = Field(default="", max_length=4000)


class Why(_Body):
    """A person's reason."""

    reason: str = Field(min_length=1, max_length=4000)


class Replay(_Body):
    """The spec whose checks shall judge (YAML); None: the release's own."""

    yaml: str | None = None


class Block(Why):
    """What shall not go forward, and for how many seconds (None: until unblocked)."""

    target: str = "local"
    seconds: float | None = Field(default=None, gt=0, le=366 * 86_400)


class Unblock(Why):
    """What may go forward again."""

    target: str = "local"


class Back(Why):
    """Where to roll back, and to which version (None: the one before)."""

    target: str = "local"
    version: str | None = None


def read_spec(asked: Asked) -> ReleaseSpec:
    """Returns the spec that was asked for; raises SpecError or UsageError."""
    given = [x for x in (asked.yaml, asked.spec, asked.model) if x is not None]
    if len(given) != 1:
        raise UsageError("name a release by exactly one of 'yaml', 'spec' and 'model'")
    if asked.yaml is not None:
        return parse_spec(asked.yaml)
    if asked.spec is not None:
        return check_spec(asked.spec)
    if not asked.model or not asked.version:
        raise UsageError("a release without a spec needs a model and a version")
    return default_spec(
        asked.model, asked.version, asked.target, replicas=asked.replicas, runtime=asked.runtime
    )


def router(control: Control, caller: Caller) -> APIRouter:
    """Returns the routes; `caller` names who asks."""
    api = APIRouter(tags=["releases"])
    _opening(api, control, caller)
    _reading(api, control)
    _verbs(api, control, caller)
    return api


def _opening(api: APIRouter, control: Control, caller: Caller) -> None:
    actor = Depends(caller)

    @api.post("/plan")
    def plan(body: Asked) -> dict[str, Any]:
        """Returns what a release would do; changes nothing."""
        made = control.commands.plan(read_spec(body))
        since = control.clock.now() - LOOK_BACK_S
        recent = control.samples.window(made.route, since=since, limit=20_000)
        return {**plan_view(made), "outlook": outlook(made, recent)}

    @api.post("/releases")
    def release(body: Asked, who: str = actor) -> dict[str, Any]:
        """Opens a release; `release` is null when the version serves already."""
        opened = control.commands.open(
            read_spec(body), actor=who, reason=body.reason, plan_digest=body.plan,
            supersede=body.supersede,
        )  # fmt: skip
        return {"release": opened.release, "plan": plan_view(opened.plan)}

    @api.post("/models/{owner}/{name}/rollback")
    def rollback(owner: str, name: str, body: Back, who: str = actor) -> dict[str, str]:
        """Takes traffic off what was released last."""
        found = control.commands.rollback(
            f"{owner}/{name}", body.target, actor=who, reason=body.reason, to=body.version
        )
        return {"release": found}

    @api.post("/models/{owner}/{name}/block")
    def block(owner: str, name: str, body: Block, who: str = actor) -> dict[str, str]:
        """Lets no release of the model go forward; going back stays possible."""
        until = None if body.seconds is None else control.clock.now() + body.seconds
        found = control.commands.block(
            f"{owner}/{name}", body.target, actor=who, reason=body.reason, until=until
        )
        return {"route": found}

    @api.post("/models/{owner}/{name}/unblock")
    def unblock(owner: str, name: str, body: Unblock, who: str = actor) -> dict[str, str]:
        """Ends a block."""
        found = control.commands.unblock(
            f"{owner}/{name}", body.target, actor=who, reason=body.reason
        )
        return {"route": found}


def _reading(api: APIRouter, control: Control) -> None:
    @api.get("/releases")
    def releases() -> list[dict[str, Any]]:
        """Returns every release, newest first."""
        found = control.engine.book().releases.values()
        return [release_summary(release) for release in reversed(list(found))]

    @api.get("/releases/{release}")
    def explain(release: str) -> dict[str, Any]:
        """Returns everything known of a release now."""
        found = _find(control, release)
        return release_view(
            found,
            now=control.clock.now(),
            gateway=control.gateway.view(),
            replicas=control.fleet.replicas(),
            timeline=_timeline(control, release),
            names=short_names(control.registry.models()),
            trouble=control.engine.trouble.get(found.route),
            verdict=None if found.final else control.engine.verdict(found.id),
        )

    @api.post("/releases/{release}/replay")
    def replay(release: str, body: Replay) -> dict[str, Any]:
        """Judges the samples of a release anew, under another spec's checks, or its own."""
        found = _find(control, release)
        rules = None
        if body.yaml is not None:
            spec = parse_spec(body.yaml)
            rules = replace(
                found.plan.rules,
                checks=tuple(check.check() for check in spec.checks),
                alpha=spec.alpha, beta=spec.beta, bucket_s=spec.bucket, adjust=spec.adjust,
                slo=spec.slo,
            )  # fmt: skip
        look = Look(now=found.opened_at, need="safe")
        told = control.docket.replay(control.engine.brief(found, rules), look, until=found.ended_at)
        return replay_view(found.opened_at, list(told))


def _timeline(control: Control, release: str) -> tuple[Recorded, ...]:
    return control.ledger.read(stream=f"release/{release}", limit=10_000)


def _find(control: Control, release: str) -> Release:
    found = control.engine.book().releases.get(release)
    if found is None:
        raise NotFoundError(f"there is no release {release}", hint="lockgate releases lists them")
    return found


def _verbs(api: APIRouter, control: Control, caller: Caller) -> None:
    actor = Depends(caller)
    commands = control.commands

    @api.post("/releases/{release}/approve")
    def approve(release: str, body: Why, who: str = actor) -> dict[str, str]:
        """Gives the caller's word for the next step that needs one."""
        return {"release": commands.approve(release, actor=who, reason=body.reason)}

    @api.post("/releases/{release}/hold")
    def hold(release: str, body: Why, who: str = actor) -> dict[str, str]:
        """Keeps the release where it is."""
        return {"release": commands.hold(release, actor=who, reason=body.reason)}

    @api.post("/releases/{release}/resume")
    def resume(release: str, body: Why, who: str = actor) -> dict[str, str]:
        """Ends a hold."""
        return {"release": commands.resume(release, actor=who, reason=body.reason)}

    @api.post("/releases/{release}/promote")
    def promote(release: str, body: Why, who: str = actor) -> dict[str, str]:
        """Skips what is left of the steps."""
        return {"release": commands.promote(release, actor=who, reason=body.reason)}
