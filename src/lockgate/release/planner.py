"""Spec + what serves now → plan. Pure: the same question always gets the same plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lockgate.core.events import VersionId
from lockgate.core.traffic import WHOLE
from lockgate.release.plan import Plan, Serving, Step, StrategyName
from lockgate.release.routes import Route, Served
from lockgate.release.spec import ReleaseSpec, check_spec
from lockgate.release.strategies import ab, blue_green, canary, rolling, shadow

DEFAULT_STEPS = (1, 10, 50, 100)
DEFAULT_CHECKS: tuple[Mapping[str, str], ...] = (
    {"signal": "error_rate", "worse_by_at_most": "50%", "tolerate": "10%", "floor": "0.5%"},
    {"signal": "latency_p95", "worse_by_at_most": "20%", "tolerate": "5%"},
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
    runs = _serving(spec, serving)
    steps = _steps(spec, runs.replicas) if baseline else (_only(spec),)
    return Plan(
        model=spec.model,
        target=spec.to,
        route=route.name,
        candidate=candidate,
        baseline=baseline,
        strategy=_strategy(spec, baseline),
        steps=steps,
        serving=runs,
        checks=tuple(check.check() for check in spec.checks) if baseline else (),
        alpha=spec.alpha,
        beta=spec.beta,
        bucket_s=spec.bucket,
        adjust=spec.adjust,
        slo=spec.slo,
        on_fail=spec.on_fail,
        on_deadline=spec.on_deadline,
        windows=spec.windows,
        not_before=spec.not_before,
        approvers=spec.approve.count if spec.approve else 1,
        approval_expires_s=spec.approve.expires if spec.approve else 86_400.0,
        limit=rolling.limit(spec.strategy, runs.replicas) if spec.strategy.rolling else None,
        variant=_variant(spec),
        twin=baseline is not None and spec.strategy.compare == "twin",
        scorers={name: found.definition for name, found in spec.scorers.items()}
        if baseline
        else {},
        score_share=max(1, round(spec.score * WHOLE)) if baseline and spec.scorers else 0,
        give_up_s=spec.strategy.give_up_after,
        # A rolling release has taken the old version away, replica by replica.
        keep_previous_s=0.0 if spec.strategy.rolling else spec.keep_previous,
        alias=spec.alias,
        bytes_to_move=bytes_to_move,
        gates=spec.gates,
    )


def _strategy(spec: ReleaseSpec, baseline: VersionId | None) -> StrategyName:
    if baseline is None:
        return "direct"
    found = spec.strategy.rolling
    if found is not None and found.surge < found.batch:
        return "in-place"
    kind: StrategyName = spec.strategy.kind  # type: ignore[assignment]
    return kind


def _only(spec: ReleaseSpec) -> Step:
    return Step(weight=WHOLE, need="seen", approval=_approved(spec, WHOLE))


def _steps(spec: ReleaseSpec, replicas: int) -> tuple[Step, ...]:
    strategy = spec.strategy
    match strategy.kind:
        case "canary":
            found = canary.steps(strategy)
        case "blue-green":
            found = blue_green.steps(strategy)
        case "rolling":
            found = rolling.steps(strategy, replicas)
        case "ab":
            found = ab.steps(strategy)
        case _:
            found = shadow.steps(strategy)
    first = {step.weight: index for index, step in reversed(list(enumerate(found)))}
    return tuple(
        replace(step, approval=_approved(spec, step.weight) and first[step.weight] == index)
        for index, step in enumerate(found)
    )


def _variant(spec: ReleaseSpec) -> tuple[str, ...]:
    test = spec.strategy.ab
    return (test.header, test.value) if test and test.header and test.value else ()


def _approved(spec: ReleaseSpec, weight: int) -> bool:
    before = spec.approve.before if spec.approve else ()
    return weight in [round(percent * WHOLE / 100) for percent in before]


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
        steps=(Step(weight=WHOLE, need="seen"),),
        serving=target.serving,
        keep_previous_s=keep_previous_s,
        alias=serving.alias,
        intent="rollback",
    )
