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
from lockgate.core.clock import iso
from lockgate.core.traffic import Weights
from lockgate.core.verdict import Verdict
from lockgate.fleet.api import Replica
from lockgate.release.state import Release
from lockgate.release.windows import closed_until

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
    was not asked. `now` is in seconds since the epoch. `samples_at` is the position of the samples
    now, `blocked` why nothing may go forward on the route (None: it may). `mirror` is who gets
    copies of how many in 10,000 requests, `judged` what gates said last of the candidate here.
    """

    now: float
    replicas: Sequence[Replica] = ()
    weights: Weights = field(default_factory=dict)
    revision: int = 0
    pools: Mapping[str, int] = field(default_factory=dict)
    kept: frozenset[str] = frozenset()
    verdict: Verdict | None = None
    samples_at: int = 0
    blocked: str | None = None
    mirror: Mapping[str, int] = field(default_factory=dict)
    judged: Mapping[str, Verdict] = field(default_factory=dict)

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
            return (_admitting(release, world),)
        case "deploying":
            return _deploying(release, world)
        case "shifting":
            return _shifting(release, world)
        case "baking":
            return _baking(release, world)
        case "reverting":
            return _reverting(release, world)
    return ()


def _admitting(release: Release, world: World) -> ev.ReleaseEvent:
    """Lets it in when every gate of the plan did; what no gate judged is not let in."""
    gates = release.plan.gates
    said = {gate: world.judged[gate] for gate in gates if gate in world.judged}
    verdicts = tuple(said.values())
    reasons = [
        f"{gate}: {said[gate].reason if gate in said else 'it has not judged this version here'}"
        for gate in gates
        if gate not in said or said[gate].outcome != "pass"
    ]
    if reasons:
        reason = "; ".join(reasons)
        return ev.ReleaseRefused(release=release.id, verdicts=verdicts, reason=reason)
    return ev.ReleaseAdmitted(release=release.id, verdicts=verdicts)


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
    needed, _ = plan.replicas(0)
    if ready >= needed:
        return _enter(release, world, 0, (ev.CapacityReady(release=release.id, replicas=ready),))
    limit = plan.serving.start_timeout_s
    if release.held is None and world.now - release.entered_at > limit + plan.serving.drain_s:
        reason = f"{ready} of {needed} replicas were ready after {limit:.0f} s"
        return (_failed(release, reason),)
    return ()


def _failed(release: Release, reason: str) -> ev.ReleaseEvent:
    return ev.ReleaseFailed(release=release.id, reason=reason)


def _enter(
    release: Release, world: World, step: int, before: tuple[ev.ReleaseEvent, ...] = ()
) -> tuple[ev.ReleaseEvent, ...]:
    """Starts `step`, or waits for what it needs: a time, an approval, the end of a block."""
    held = release.held
    if held is not None and held.because == "person":
        return ()
    waits = _waits(release, world, step)
    if waits is not None:
        told = held is not None and (held.because, held.step) == (waits.because, waits.step)
        return () if told else (waits,)
    first = world.samples_at if release.evidence_from is None else None
    started = ev.StepStarted(
        release=release.id, step=step, weights=release.plan.weights(step), samples_from=first
    )
    return (*before, started)


def _waits(release: Release, world: World, step: int) -> ev.ReleaseHeld | None:
    """Returns why `step` may not begin now, None when it may. A rollback waits for nothing."""
    plan = release.plan
    if plan.intent == "rollback":
        return None

    def hold(because: ev.HeldBecause, reason: str) -> ev.ReleaseHeld:
        return ev.ReleaseHeld(release=release.id, step=step, because=because, reason=reason)

    if world.blocked is not None:
        return hold("blocked", f"{release.route} is blocked: {world.blocked}")
    opens = closed_until(plan.windows, world.now)
    if plan.not_before is not None and world.now < plan.not_before:
        opens = max(opens or 0.0, plan.not_before)
    if opens is not None:
        return hold("window", f"outside its time windows until {iso(opens)}")
    if plan.steps[step].approval and release.allowed(step, world.now) < plan.approvers:
        lacking = plan.approvers - release.allowed(step, world.now)
        who = "a person" if lacking == 1 else f"{lacking} people"
        percent = plan.steps[step].percent
        command = f"lockgate approve {release.id} --reason …"
        return hold("approval", f"{who} must approve {percent}: {command}")
    return None


def _shifting(release: Release, world: World) -> tuple[ev.ReleaseEvent, ...]:
    wanted = release.plan.weights(release.step)
    copies = release.plan.steps[release.step].mirror
    if same_split(world.weights, wanted) and sum(world.mirror.values()) == copies:
        shifted = ev.TrafficShifted(
            release=release.id, step=release.step, weights=wanted, revision=world.revision
        )
        return (shifted,)
    if world.verdict is not None and world.verdict.outcome == "fail":
        return _fail(release, world.verdict)
    return _replica_trouble(release, world) or _slow_start(release, world)


def _slow_start(release: Release, world: World) -> tuple[ev.ReleaseEvent, ...]:
    """Turns back when the replicas of a later step are not ready in time."""
    plan, serving = release.plan, release.plan.serving
    needed, _ = plan.replicas(release.step)
    ready = world.ready(plan.candidate.digest)
    patience = serving.start_timeout_s + serving.drain_s
    if plan.limit is None or ready >= needed or world.now - release.entered_at <= patience:
        return ()
    reason = f"{ready} of {needed} replicas were ready after {patience:.0f} s"
    return (_give_up(release, "replicas", reason),)


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
        if last:
            return (ev.ReleasePromoted(release=release.id),)
        batches = release.plan.limit is not None  # room first, then replicas: no step is skipped
        end = release.step + 1 if batches else len(release.plan.steps) - 1
        for skipped in range(release.step + 1, end):  # steps are skipped, approvals are not
            waits = _waits(release, world, skipped)
            if waits is not None and waits.because == "approval":
                return _enter(release, world, skipped)
        return _enter(release, world, end)
    step = release.plan.steps[release.step]
    news = _news(release, world, verdict)
    if world.now < release.entered_at + step.bake_s:
        return news
    if judged(release) and (verdict is None or verdict.outcome != "pass"):
        return (*news, *_wait_for_evidence(release, world, verdict))
    return (*news, *_pass(release, world, verdict, last))


def judged(release: Release) -> bool:
    """Says whether the step that the release is at is left on a verdict."""
    step = release.plan.steps[release.step]
    return step.min_requests > 0 or (step.need != "seen" and bool(release.plan.checks))


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
    plan, step, held = release.plan, release.plan.steps[release.step], release.held
    if held is not None and held.because != "evidence":
        return ()
    reason = verdict.reason if verdict else "the judge has no samples"
    patience = plan.give_up_s if step.max_s is None else step.max_s
    if world.now >= release.entered_at + step.bake_s + patience:
        late = f"still not judged: {reason}"
        if plan.on_deadline == "rollback":
            return (_back(release, "deadline", late, verdict),)
        wait = ev.ReleaseHeld(release=release.id, step=release.step, because="person", reason=late)
        return (wait,)
    told = held is not None
    if verdict is not None and verdict.requests >= max(step.min_requests, 1):
        # Requests come, and the proof with them: it goes on baking.
        resumed = ev.ReleaseResumed(release=release.id, step=release.step, reason=reason)
        return (resumed,) if told else ()
    wait = ev.ReleaseHeld(release=release.id, step=release.step, because="evidence", reason=reason)
    return () if told else (wait,)


def _pass(
    release: Release, world: World, verdict: Verdict | None, last: bool
) -> tuple[ev.ReleaseEvent, ...]:
    passed = ev.StepPassed(release=release.id, step=release.step, verdict=verdict)
    if last:
        return (passed, ev.ReleasePromoted(release=release.id))
    following = _enter(release, world, release.step + 1)
    told_before = release.held is not None and release.held.because != "evidence"
    return following if told_before else (passed, *following)


def _reverting(release: Release, world: World) -> tuple[ev.ReleaseEvent, ...]:
    candidate = release.plan.candidate.digest
    if not release.traffic_reverted:
        if world.weights.get(candidate, 0) or candidate in world.mirror:
            return ()
        return (ev.TrafficReverted(release=release.id, revision=world.revision),)
    if world.gone(candidate) or candidate in world.kept:
        return (ev.ReleaseReverted(release=release.id),)
    return ()


def same_split(one: Weights, other: Weights) -> bool:
    """Says whether two splits send the same share everywhere (a weight of 0 is no entry)."""
    return {v: w for v, w in one.items() if w} == {v: w for v, w in other.items() if w}
