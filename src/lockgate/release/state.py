"""The state of a release: a pure fold over its events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from lockgate.core import events as ev
from lockgate.core.codec import from_json
from lockgate.core.errors import IntegrityError
from lockgate.core.verdict import Verdict
from lockgate.ledger.api import Recorded
from lockgate.release.plan import Plan

Phase = Literal[
    "admitting", "deploying", "shifting", "baking", "reverting",
    "promoted", "reverted", "refused", "failed",
]  # fmt: skip
FINAL: frozenset[Phase] = frozenset({"promoted", "reverted", "refused", "failed"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """One person's word that a step may be entered, and when it was given."""

    step: int
    by: str
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A release as its events tell it. Times in seconds since the epoch.

    `step` is the step it is at or heading for, `entered_at` when its phase began, `evidence_from`
    when the candidate first got traffic, `events` the length of its stream. `reverted`: traffic is
    off the candidate. `failures` counts actions in a row that could never succeed. Its evidence
    begins at position `samples_from` of the samples; its step at revision `since_revision` of the
    route.
    """

    id: str
    plan: Plan
    opened_at: float
    opened_by: str
    reason: str
    phase: Phase = "admitting"
    step: int = 0
    entered_at: float = 0.0
    evidence_from: float | None = None
    verdict: Verdict | None = None
    held: ev.ReleaseHeld | None = None
    approvals: tuple[Approval, ...] = ()
    samples_from: int = 0
    since_revision: int = 0
    promote_now: bool = False
    rollback: ev.RollbackStarted | None = None
    traffic_reverted: bool = False
    failures: int = 0
    note: str = ""
    ended_at: float | None = None
    events: int = 0

    @property
    def route(self) -> str:
        """The route it changes."""
        return self.plan.route

    @property
    def final(self) -> bool:
        """True when nothing more will be decided."""
        return self.phase in FINAL

    def allowed(self, step: int, now: float) -> int:
        """Returns how many people allow `step` at `now`, those whose word has expired left out."""
        alive = now - self.plan.approval_expires_s
        return len({one.by for one in self.approvals if one.step == step and one.at >= alive})

    @property
    def touched_traffic(self) -> bool:
        """True once the candidate may have had requests."""
        return self.evidence_from is not None


def start(recorded: Recorded) -> Release:
    """Returns the release that its first event opens; raises IntegrityError for another event."""
    event = recorded.event
    if not isinstance(event, ev.ReleaseOpened):
        raise IntegrityError(f"{recorded.stream} does not begin with ReleaseOpened")
    return Release(
        id=event.release,
        plan=from_json(Plan, event.plan),
        opened_at=recorded.at,
        opened_by=recorded.actor,
        reason=event.reason,
        entered_at=recorded.at,
        events=recorded.version,
    )


def evolve(release: Release, recorded: Recorded) -> Release:
    """Returns the release after one more of its events; unknown events only count."""
    changes = _changes(release, recorded)
    return replace(release, events=recorded.version, **changes)  # type: ignore[arg-type]


def _changes(release: Release, recorded: Recorded) -> Mapping[str, object]:
    event, at = recorded.event, recorded.at
    match event:
        case ev.ReleaseAdmitted():
            return {"phase": "deploying", "entered_at": at}
        case ev.ReleaseRefused(reason=reason):
            return {"phase": "refused", "note": reason, "ended_at": at, "held": None}
        case ev.CapacityReady():
            return {"failures": 0}
        case ev.StepStarted():
            return _step_started(release, event, at)
        case ev.TrafficShifted(revision=revision):
            since = {"since_revision": revision}
            return {"phase": "baking", "entered_at": at, "failures": 0, **since}
        case ev.Judged(verdict=verdict):
            return {"verdict": verdict}
        case ev.StepPassed(verdict=verdict):
            return {"verdict": verdict or release.verdict}
        case ev.ReleaseHeld():
            return {"held": event}
        case ev.ReleaseResumed():
            return {"held": None}
        case ev.StepApproved(step=step):
            word = Approval(step=step, by=recorded.actor, at=at)
            return {"approvals": (*release.approvals, word)}
        case ev.PromotionRequested():
            return {"promote_now": True, "held": None}
        case ev.RollbackStarted():
            return _rollback_started(release, event, at)
        case ev.TrafficReverted():
            return {"traffic_reverted": True, "failures": 0}
        case ev.ActionFailed(reason=reason, permanent=permanent):
            return {"failures": release.failures + permanent, "note": reason}
        case ev.ReleasePromoted():
            return {"phase": "promoted", "ended_at": at, "held": None}
        case ev.ReleaseReverted():
            return {"phase": "reverted", "ended_at": at, "held": None}
        case ev.ReleaseFailed(reason=reason):
            return {"phase": "failed", "note": reason, "ended_at": at, "held": None}
    return {}


def _step_started(release: Release, event: ev.StepStarted, at: float) -> Mapping[str, object]:
    changes = {"phase": "shifting", "step": event.step, "entered_at": at, "held": None}
    if release.evidence_from is None:
        changes |= {"evidence_from": at, "samples_from": event.samples_from or 0}
    return changes


def _rollback_started(
    release: Release, event: ev.RollbackStarted, at: float
) -> Mapping[str, object]:
    return {
        "phase": "reverting",
        "entered_at": at,
        "rollback": event,
        "verdict": event.verdict or release.verdict,
        "held": None,
        "failures": 0,
    }
