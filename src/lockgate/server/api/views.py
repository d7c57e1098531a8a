"""One view model for every reader: CLI, watcher, console and scripts get the same values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lockgate.core.clock import iso
from lockgate.core.codec import to_json
from lockgate.core.digests import short
from lockgate.core.events import kind_of
from lockgate.core.traffic import WHOLE
from lockgate.core.verdict import Verdict
from lockgate.fleet.api import Replica
from lockgate.gateway.api import GatewayView, RouteView
from lockgate.ledger.api import Recorded
from lockgate.ledger.audit import say
from lockgate.registry.catalog import Model, Version
from lockgate.registry.manifest import Manifest
from lockgate.release.plan import Plan
from lockgate.release.routes import Route
from lockgate.release.state import Release

Json = dict[str, Any]
_SIDES = re.compile(r"(?<!\S)(\S+% v\d+) / (\S+% v\d+)")  # from a word's begin: linear in time
_DIGEST = re.compile(r"blake3:[0-9a-f]{12}(?=[ /]|$)")


def version_view(version: Version, model: Model) -> Json:
    """Returns a version with its aliases."""
    body: Json = to_json(version.published)
    aliases = sorted(name for name, number in model.aliases.items() if number == version.number)
    return {
        **body, "at": iso(version.at), "publisher": version.publisher, "aliases": aliases,
        "lineage": to_json(version.lineage),
    }  # fmt: skip


def model_view(model: Model) -> Json:
    """Returns a model with all its versions, newest first."""
    versions = [version_view(version, model) for version in reversed(model.versions)]
    return {"name": model.name, "aliases": dict(model.aliases), "versions": versions}


def manifest_view(manifest: Manifest) -> Json:
    """Returns a manifest with each artifact's digest."""
    body: Json = to_json(manifest)
    for view, artifact in zip(body["artifacts"], manifest.artifacts, strict=True):
        view["digest"] = artifact.digest
    return body


def plan_view(plan: Plan) -> Json:
    """Returns a plan with its digest and what follows from it."""
    return {
        **to_json(plan),
        "digest": plan.digest,
        "changes": plan.changes,
        "earliest_s": plan.earliest_s,
        "requests_needed": sum(step.min_requests for step in plan.steps),
    }


def replica_view(replica: Replica) -> Json:
    """Returns a replica."""
    return {**to_json(replica), "since": iso(replica.since)}


def _older_first(found: re.Match[str]) -> str:
    """Returns the two sides of a split with the older version first, wherever it is told."""
    one, other = sorted((found[1], found[2]), key=lambda side: int(side.rpartition("v")[2]))
    return f"{one} / {other}"


def short_names(models: Mapping[str, Model]) -> dict[str, str]:
    """Returns `v3` by the short form of a digest, for every version that is not in two models."""
    names: dict[str, str] = {}
    for model in models.values():
        for version in model.versions:
            key = short(version.digest)
            name = f"v{version.number}"
            names[key] = name if names.get(key, name) == name else key
    return names


def event_view(recorded: Recorded, names: Mapping[str, str]) -> Json:
    """Returns an event of the ledger with its sentence; `names` replaces digests in it."""
    text = _DIGEST.sub(lambda found: names.get(found[0], found[0]), say(recorded.event))
    text = _SIDES.sub(_older_first, text)
    return {
        "position": recorded.position,
        "stream": recorded.stream,
        "version": recorded.version,
        "at": iso(recorded.at),
        "actor": recorded.actor,
        "kind": kind_of(recorded.event),
        "text": text,
        "body": to_json(recorded.event),
    }


def release_summary(release: Release) -> Json:
    """Returns the line that stands for a release in a list."""
    plan = release.plan
    return {
        "id": release.id,
        "model": plan.model,
        "target": plan.target,
        "route": plan.route,
        "intent": plan.intent,
        "candidate": to_json(plan.candidate),
        "baseline": to_json(plan.baseline),
        "phase": release.phase,
        "final": release.final,
        "step": release.step,
        "percent": plan.steps[release.step].percent,
        "steps": len(plan.steps),
        "held": to_json(release.held),
        "opened_at": iso(release.opened_at),
        "opened_by": release.opened_by,
        "ended_at": iso(release.ended_at) if release.ended_at else None,
        "note": release.note,
    }


def release_view(
    release: Release,
    *,
    now: float,
    gateway: GatewayView,
    replicas: Sequence[Replica],
    timeline: Sequence[Recorded],
    names: Mapping[str, str],
    trouble: str | None,
    verdict: Verdict | None = None,
) -> Json:
    """Returns everything that a person may want to know of a release now."""
    plan = release.plan
    route = gateway.routes.get(plan.route)
    sides = [v for v in (plan.baseline, plan.candidate) if v is not None]
    return {
        **release_summary(release),
        "plan": plan_view(plan),
        "now": iso(now),
        "elapsed_s": (release.ended_at or now) - release.opened_at,
        "bake_left_s": _bake_left(release, now),
        "split": _split(release, route),
        "steps": [_step(release, index) for index in range(len(plan.steps))],
        "verdict": to_json(verdict or release.verdict),
        "rollback": to_json(release.rollback),
        "reason": release.reason,
        "trouble": trouble,
        "address": gateway.address,
        "replicas": [
            {"version": str(side), "digest": side.digest, **_replicas(side.digest, plan, replicas)}
            for side in sides
        ],
        "timeline": [event_view(recorded, names) for recorded in timeline],
    }


def _split(release: Release, route: RouteView | None) -> dict[str, int]:
    """Returns the split in force, and of a release that ended the one that it ended with."""
    plan = release.plan
    if release.phase == "promoted":
        return {plan.candidate.digest: WHOLE}
    if release.final:
        return {plan.baseline.digest: WHOLE} if plan.baseline else {}
    return dict(route.weights) if route else {}


def _bake_left(release: Release, now: float) -> float | None:
    if release.phase != "baking":
        return None
    return max(0.0, release.entered_at + release.plan.steps[release.step].bake_s - now)


def _step(release: Release, index: int) -> Json:
    step = release.plan.steps[index]
    state = "later"
    if release.phase == "promoted" or index < release.step:
        state = "done"
    elif index == release.step and release.phase in ("shifting", "baking"):
        state = "now"
    return {**to_json(step), "percent": step.percent, "state": state}


def _replicas(version: str, plan: Plan, replicas: Sequence[Replica]) -> Json:
    mine = [r for r in replicas if r.version == version and r.route == plan.route]
    return {
        "ready": sum(r.state == "ready" for r in mine),
        "total": len(mine),
        "restarts": sum(r.restarts for r in mine),
        "messages": sorted({r.message for r in mine if r.message}),
    }


def replay_view(opened_at: float, told: Sequence[tuple[int, Verdict]]) -> Json:
    """Returns where a judgement changed its mind, and how it ended."""
    turns = [
        {"requests": count, "after_s": verdict.at - opened_at, "outcome": verdict.outcome,
         "reason": verdict.reason}
        for index, (count, verdict) in enumerate(told)
        if index == 0 or verdict.outcome != told[index - 1][1].outcome
    ]  # fmt: skip
    last = told[-1] if told else None
    return {
        "requests": last[0] if last else 0,
        "turns": turns,
        "verdict": to_json(last[1]) if last else None,
    }


def route_view(route: Route, gateway: GatewayView, trouble: Mapping[str, str]) -> Json:
    """Returns a route: what serves, what is under way, what could come back at once."""
    known = gateway.routes.get(route.name)
    serving, previous = route.serving, route.previous
    return {
        "name": route.name,
        "model": route.model,
        "target": route.name.rpartition("@")[2],
        "url": f"{gateway.address}/{route.model}" if known else None,
        "serving": to_json(serving.version) if serving else None,
        "since": iso(serving.since) if serving else None,
        "previous": to_json(previous.version) if previous else None,
        "keep_until": iso(route.keep_until) if previous else None,
        "release": release_summary(route.active) if route.active else None,
        "split": dict(known.weights) if known else {},
        "revision": known.revision if known else 0,
        "waiting": release_summary(route.waiting) if route.waiting else None,
        "blocked": to_json(route.block),
        "trouble": trouble.get(route.name),
    }
