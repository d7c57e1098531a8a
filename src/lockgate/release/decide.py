"""What happens next in a release: a pure, level-triggered function of what is.

It looks at the state and the world, never at what it said before, so that a tick may be repeated,
skipped, or begin after a crash. It only names events; `converge` says what to do in the world.

Order of safety: going back needs no analysis, no steps and no healthy metrics; no data is never a
pass; a person's hold is ended by a person, but does not keep a failing candidate in traffic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lockgate.core import events as ev
from lockgate.core.traffic import Weights
from lockgate.core.verdict import Verdict
from lockgate.fleet.api import Replica
from lockgate.release.state import Release

CRASH_LOOP = 3
"""Restarts of one candidate replica while it has traffic that count as a crash loop."""
NEWS_S = 5.0
"""Seconds between two records of a verdict that wavers; a fail is recorded at once."""
GIVE_UP_FAILURES = 3
"""Actions in a row that can never succeed before the release turns back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What is true outside, as adapters tell it. `weights` and `revision` are what is in force.

    `pools` is every version on the route that proxies can reach, `kept` what stays ready whatever
    becomes of the release. `verdict` is None when the judge
    was not asked. `now` is in seconds since the epoch.
    """

    now: float
    replicas: Sequence[Replica] = ()
    weights: Weights = field(default_factory=dict)
    revision: int = 0
    pools: Mapping[str, int] = field(default_factory=dict)
    kept: frozenset[str] = frozenset()
    verdict: Verdict | None = None

    def ready(self, version: str) -> int:
        """Returns how many replicas of `version` are ready."""
        return sum(r.version == version and r.state == "ready" for r in self.replicas)

    def gone(self, version: str) -> bool:
        """Says whether nothing of `version` is left: no pool, no process."""
        return version not in self.pools and all(r.version != version for r in self.replicas)


def decide(release: Release, world: World) -> tuple[ev.ReleaseEvent, ...]:
    """Returns the events that are due now; none when there is nothing to do but wait."""
    match release.phase:
        case "admitting":
            return (ev.ReleaseAdmitted(release=release.id),)
        case "deploying":
            return _deploying(release, world)
        case "shifting":
            return _shifting(release, world)
        case "baking":
            return _baking(release, world)
        case "reverting":
            return _reverting(release, world)
    return ()


def _deploying(release: Release, world: World) -> tuple[ev.ReleaseEvent, ...]:
    plan, candidate = release.plan, release.plan.candidate.digest
    ready = world.ready(candidate)
    broken = next(
        (r for r in world.replicas if r.version == candidate and r.state == "failed"), None
    )
    if broken:
        return (_failed(release, f"replica {broken.name} did not start: {broken.message}"),)
    if release.failures >= GIVE_UP_FAILURES:
        return (_failed(release, release.note),)
    if ready >= plan.serving.replicas:
        return _enter(release, 0, (ev.CapacityReady(release=release.id, replicas=ready),))
    limit = plan.serving.start_timeout_s
    if release.held is None and world.now - release.entered_at > limit + plan.serving.drain_s:
        reason = f"{ready} of {plan.serving.replicas} replicas were ready after {limit:.0f} s"
        return (_failed(release, reason),)
    return ()


def _failed(release: Release, reason: str) -> ev.ReleaseEvent:
    return ev.ReleaseFailed(release=release.id, reason=reason)


def _enter(
    release: Release, step: int, before: tuple[ev.ReleaseEvent, ...] = ()
) -> tuple[ev.ReleaseEvent, ...]:
    """Starts `step`, or waits for the approval that it needs."""
    held = release.held
    if held is not None and held.because == "person":
        return ()
    if release.plan.steps[step].approval and step not in release.approved:
        if held is not None and held.because == "approval" and held.step == step:
            return ()
        percent = release.plan.steps[step].percent
        wait = ev.ReleaseHeld(
            release=release.id,
            step=step,
            because="approval",
            reason=f"a person must approve {percent}: lockgate approve {release.id} --reason …",
        )
        return (wait,)
    weights = release.plan.weights(step)
    return (*before, ev.StepStarted(release=release.id, step=step, weights=weights))


def _shifting(release: Release, world: World) -> tuple[ev.ReleaseEvent, ...]:
    wanted = release.plan.weights(release.step)
    if same_split(world.weights, wanted):
        shifted = ev.TrafficShifted(
            release=release.id, step=release.step, weights=wanted, revision=world.revision
        )
        return (shifted,)
    return _replica_trouble(release, world)


def _baking(release: Release, world: World) -> tuple[ev.ReleaseEvent, ...]:
    trouble = _replica_trouble(release, world)
    if trouble:
        return trouble
    verdict = world.verdict
    if verdict is not None and verdict.outcome == "fail":
        return _fail(release, verdict)
    last = release.step == len(release.plan.steps) - 1
    if release.held is not None and release.held.because == "person":
        return ()
    if release.promote_now:
        end = len(release.plan.steps) - 1
        return (ev.ReleasePromoted(release=release.id),) if last else _enter(release, end)
    step = release.plan.steps[release.step]
    news = _news(release, world, verdict)
    if world.now < release.entered_at + step.bake_s:
        return news
    judged = bool(release.plan.checks) or step.min_requests > 0
    if judged and (verdict is None or verdict.outcome != "pass"):
        return (*news, *_wait_for_evidence(release, world, verdict))
    return (*news, *_pass(release, verdict, last))


def _replica_trouble(release: Release, world: World) -> tuple[ev.ReleaseEvent, ...]:
    """Turns back when the candidate's replicas give up or crash again and again under traffic.

    The first release has nothing to turn back to once it serves, and a rollback is not undone.
    """
    plan, candidate = release.plan, release.plan.candidate.digest
    if plan.intent == "rollback" or (plan.baseline is None and world.weights.get(candidate, 0)):
        return ()
    since = release.evidence_from or release.entered_at
    for replica in world.replicas:
        crashes = sum(at >= since for at in replica.crashes)
        if replica.version == candidate and (replica.state == "failed" or crashes >= CRASH_LOOP):
            what = replica.message or f"restarted {crashes} times"
            return (_give_up(release, "replicas", f"replica {replica.name}: {what}"),)
    if release.failures >= GIVE_UP_FAILURES:
        return (_give_up(release, "gateway", release.note),)
    return ()


def _give_up(release: Release, cause: ev.RevertCause, reason: str) -> ev.ReleaseEvent:
    return (
        _failed(release, reason) if release.plan.baseline is None else _back(release, cause, reason)
    )


def _fail(release: Release, verdict: Verdict) -> tuple[ev.ReleaseEvent, ...]:
    judged = ev.Judged(release=release.id, step=release.step, verdict=verdict)
    if release.plan.on_fail == "hold":
        if release.held is not None:
            return ()
        hold = ev.ReleaseHeld(
            release=release.id, step=release.step, because="person", reason=verdict.reason
        )
        return (judged, hold)
    return (judged, _back(release, "verdict", verdict.reason, verdict))


def _back(
    release: Release, cause: ev.RevertCause, reason: str, verdict: Verdict | None = None
) -> ev.ReleaseEvent:
    return ev.RollbackStarted(release=release.id, cause=cause, reason=reason, verdict=verdict)


def _news(release: Release, world: World, verdict: Verdict | None) -> tuple[ev.ReleaseEvent, ...]:
    """Records a verdict when its outcome is another one than the last recorded, not too often."""
    known = release.verdict
    if verdict is None or (known is not None and verdict.outcome == known.outcome):
        return ()
    if known is not None and world.now - known.at < NEWS_S:
        return ()
    return (ev.Judged(release=release.id, step=release.step, verdict=verdict),)


def _wait_for_evidence(
    release: Release, world: World, verdict: Verdict | None
) -> tuple[ev.ReleaseEvent, ...]:
    step = release.plan.steps[release.step]
    if release.held is not None and release.held.because == "approval":
        return ()
    reason = verdict.reason if verdict else "the judge has no samples"
    if world.now >= release.entered_at + step.bake_s + release.plan.give_up_s:
        return (_back(release, "deadline", f"still not judged: {reason}", verdict),)
    if release.held is not None:
        return ()
    held = ev.ReleaseHeld(release=release.id, step=release.step, because="evidence", reason=reason)
    return (held,)


def _pass(release: Release, verdict: Verdict | None, last: bool) -> tuple[ev.ReleaseEvent, ...]:
    passed = ev.StepPassed(release=release.id, step=release.step, verdict=verdict)
    if last:
        return (passed, ev.ReleasePromoted(release=release.id))
    following = _enter(release, release.step + 1)
    told_before = release.held is not None and release.held.because == "approval"
    return following if told_before else (passed, *following)


def _reverting(release: Release, world: World) -> tuple[ev.ReleaseEvent, ...]:
    candidate = release.plan.candidate.digest
    if not release.traffic_reverted:
        if world.weights.get(candidate, 0):
            return ()
        return (ev.TrafficReverted(release=release.id, revision=world.revision),)
    if world.gone(candidate) or candidate in world.kept:
        return (ev.ReleaseReverted(release=release.id),)
    return ()


def same_split(one: Weights, other: Weights) -> bool:
    """Says whether two splits send the same share everywhere (a weight of 0 is no entry)."""
    return {v: w for v, w in one.items() if w} == {v: w for v, w in other.items() if w}
