"""Spec + what serves now → plan. Pure: the same question always gets the same plan."""

from __future__ import annotations

from collections.abc import Mapping

from lockgate.core.events import VersionId
from lockgate.core.traffic import WHOLE
from lockgate.release.plan import Plan, Serving, Step, StrategyName
from lockgate.release.routes import Route, Served
from lockgate.release.spec import ReleaseSpec, check_spec

DEFAULT_STEPS = (1, 10, 50, 100)
DEFAULT_CHECKS: tuple[Mapping[str, str], ...] = (
    {"signal": "error_rate", "worse_by_at_most": "25%", "floor": "0.1%"},
    {"signal": "latency_p95", "worse_by_at_most": "10%"},
)


def default_spec(
    model: str,
    version: str,
    target: str,
    *,
    replicas: int | None = None,
    runtime: Mapping[str, object] | None = None,
) -> ReleaseSpec:
    """Returns the spec of a release that was asked for without one: a canary of 1, 10, 50, 100 %.

    `runtime` is the spec's `runtime` section.
    """
    return check_spec(
        {
            "model": model,
            "version": version,
            "to": target,
            "strategy": {"canary": list(DEFAULT_STEPS)},
            "checks": list(DEFAULT_CHECKS),
            "replicas": replicas,
            "runtime": dict(runtime or {}),
        }
    )


def make_plan(spec: ReleaseSpec, route: Route, candidate: VersionId, *, bytes_to_move: int) -> Plan:
    """Returns what the release of `spec` on `route` will do.

    With nothing serving there is nothing to compare with: one step, no checks. What the spec leaves
    open (replicas, runtime, stickiness) stays as it serves now.
    """
    serving = route.serving
    baseline = serving.version if serving else None
    if baseline is None:
        steps: tuple[Step, ...] = (Step(weight=WHOLE, approval=_approved(spec, 100.0)),)
    else:
        steps = tuple(_step(spec, percent) for percent in spec.strategy.canary or (100.0,))
    return Plan(
        model=spec.model,
        target=spec.to,
        route=route.name,
        candidate=candidate,
        baseline=baseline,
        strategy=_strategy(spec, baseline),
        steps=steps,
        serving=_serving(spec, serving),
        checks=tuple(check.check() for check in spec.checks) if baseline else (),
        alpha=spec.alpha,
        bucket_s=spec.bucket,
        on_fail=spec.on_fail,
        give_up_s=spec.strategy.give_up_after,
        keep_previous_s=spec.keep_previous,
        alias=spec.alias,
        bytes_to_move=bytes_to_move,
    )


def _strategy(spec: ReleaseSpec, baseline: VersionId | None) -> StrategyName:
    if baseline is None:
        return "direct"
    return "canary" if spec.strategy.canary else "blue-green"


def _step(spec: ReleaseSpec, percent: float) -> Step:
    return Step(
        weight=round(percent * WHOLE / 100),
        bake_s=spec.strategy.bake,
        min_requests=spec.strategy.min_requests,
        approval=_approved(spec, percent),
    )


def _approved(spec: ReleaseSpec, percent: float) -> bool:
    return spec.approve is not None and percent in spec.approve.before


def _serving(spec: ReleaseSpec, now: Served | None) -> Serving:
    runtime = spec.runtime
    before = now.serving if now else Serving()
    return Serving(
        replicas=spec.replicas or before.replicas,
        runtime=runtime.name or (None if runtime.options else before.runtime),
        options=runtime.options or before.options,
        memory_mb=runtime.memory_mb or before.memory_mb,
        start_timeout_s=_given(runtime.start_timeout, before.start_timeout_s),
        drain_s=_given(runtime.drain, before.drain_s),
        sticky_header=spec.sticky or before.sticky_header,
    )


def _given(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def rollback_plan(route: Route, serving: Served, target: Served, *, keep_previous_s: float) -> Plan:
    """Returns the plan that puts `target` in the place of `serving` in one step, unjudged."""
    return Plan(
        model=route.model,
        target=route.name.rpartition("@")[2],
        route=route.name,
        candidate=target.version,
        baseline=serving.version,
        strategy="direct",
        steps=(Step(weight=WHOLE),),
        serving=target.serving,
        keep_previous_s=keep_previous_s,
        alias=serving.alias,
        intent="rollback",
    )
