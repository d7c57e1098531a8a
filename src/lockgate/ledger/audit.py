"""The audit: the ledger read aloud, one sentence an event. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from lockgate.core import events as ev
from lockgate.core.clock import iso
from lockgate.core.digests import short
from lockgate.core.units import duration, size
from lockgate.core.verdict import Verdict


def say(event: ev.Event) -> str:
    """Returns what happened, in a sentence without its subject's name and time."""
    match event:
        case ev.VersionPublished() | ev.AliasMoved():
            return _say_registry(event)
        case ev.VersionDerived() | ev.VersionJudged() | ev.TrainingReported():
            return _say_version(event)
        case ev.UnknownEvent(kind=kind):
            return f"{kind} (written by a newer lockgate)"
        case ev.ReleaseOpened():
            return _say_opened(event)
        case ev.StepStarted() | ev.TrafficShifted() | ev.StepPassed() | ev.StepApproved():
            return _say_step(event)
        case ev.ReleaseHeld() | ev.ReleaseResumed() | ev.PromotionRequested():
            return _say_pause(event)
        case ev.RollbackStarted() | ev.TrafficReverted() | ev.ReleaseReverted():
            return _say_back(event)
        case ev.RouteBlocked() | ev.RouteUnblocked():
            return _say_block(event)
        case ev.Judged(verdict=verdict):
            return f"judged {say_verdict(verdict)}"
    return _say_rest(event)


def _say_registry(event: ev.VersionPublished | ev.AliasMoved) -> str:
    if isinstance(event, ev.VersionPublished):
        return (
            f"published v{event.number} of {event.model} ({short(event.digest)}, "
            f"{size(event.bytes_total)}, {size(event.bytes_new)} new)"
        )
    before = f" (was v{event.previous})" if event.previous else ""
    why = f": {event.reason}" if event.reason else ""
    return f"{event.alias} of {event.model} is now v{event.number}{before}{why}"


def _say_version(event: ev.VersionDerived | ev.VersionJudged | ev.TrainingReported) -> str:
    name = f"v{event.number} of {event.model}"
    if isinstance(event, ev.TrainingReported):
        numbers = ", ".join(f"{key} {value:.5g}" for key, value in sorted(event.metrics.items()))
        return f"{name}: run {event.run} {event.status}{numbers and f' ({numbers})'}"
    if isinstance(event, ev.VersionJudged):
        return f"{name} for {event.target}, {event.gate}: {say_verdict(event.verdict)}"
    came = ", ".join(f"{edge.model} {short(edge.digest)}" for edge in event.lineage)
    return f"{name} made by {event.recipe.get('step')} from {came} in {duration(event.seconds)}"


def _say_opened(event: ev.ReleaseOpened) -> str:
    before = f" in place of {event.baseline}" if event.baseline else ", the first version"
    verb = "rollback to" if event.intent == "rollback" else "release of"
    why = f": {event.reason}" if event.reason else ""
    after = f", after {event.supersedes}" if event.supersedes else ""
    return f"opened the {verb} {event.candidate} on {event.route}{before}{after}{why}"


def _say_step(
    event: ev.StepStarted | ev.TrafficShifted | ev.StepPassed | ev.StepApproved,
) -> str:
    if isinstance(event, ev.StepStarted):
        return f"step {event.step + 1}: shifting to {_split(event.weights)}"
    if isinstance(event, ev.TrafficShifted):
        return (
            f"step {event.step + 1}: {_split(event.weights)} in force at every proxy "
            f"(revision {event.revision})"
        )
    if isinstance(event, ev.StepPassed):
        why = f": {event.verdict.reason}" if event.verdict else ""
        return f"step {event.step + 1} passed{why}"
    return f"step {event.step + 1} approved: {event.reason}"


def _split(weights: Mapping[str, int]) -> str:
    return " / ".join(f"{w / 100:g}% {short(v)}" for v, w in weights.items() if w)


def _say_pause(event: ev.ReleaseHeld | ev.ReleaseResumed | ev.PromotionRequested) -> str:
    if isinstance(event, ev.ReleaseHeld):
        return f"held ({event.because}): {event.reason}"
    if isinstance(event, ev.ReleaseResumed):
        return f"resumed: {event.reason}"
    return f"promotion asked for: {event.reason}"


def _say_back(event: ev.RollbackStarted | ev.TrafficReverted | ev.ReleaseReverted) -> str:
    if isinstance(event, ev.RollbackStarted):
        return f"rolling back ({event.cause}): {event.reason}"
    if isinstance(event, ev.TrafficReverted):
        return f"traffic is off the candidate at every proxy (revision {event.revision})"
    return "rolled back: the candidate is gone"


def _say_block(event: ev.RouteBlocked | ev.RouteUnblocked) -> str:
    if isinstance(event, ev.RouteUnblocked):
        return f"unblocked {event.route}: {event.reason}"
    until = f" until {iso(event.until)}" if event.until is not None else ""
    return f"blocked {event.route}{until}: {event.reason}"


def _say_rest(event: ev.Event) -> str:
    match event:
        case ev.ReleaseAdmitted():
            return "admitted"
        case ev.ReleaseRefused(reason=reason):
            return f"refused: {reason}"
        case ev.CapacityReady(replicas=replicas):
            return f"{replicas} replica{'s' if replicas != 1 else ''} ready and warm"
        case ev.ReleasePromoted():
            return "promoted"
        case ev.ReleaseFailed(reason=reason):
            return f"failed before traffic: {reason}"
        case ev.VersionRetired(version=version):
            return f"{version} drained and gone"
        case ev.ActionFailed(action=action, reason=reason):
            return f"could not {action}: {reason}"
    return ev.kind_of(event)


def say_verdict(verdict: Verdict) -> str:
    """Returns `fail: ttft_p95 is worse: 0.9 s against 0.4, limit 0.44`."""
    return f"{verdict.outcome}: {verdict.reason}"
