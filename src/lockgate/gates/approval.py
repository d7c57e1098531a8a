"""The gate `approval`: people say yes, with a reason, to this version at this target."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from lockgate.core import canonical
from lockgate.core.digests import digest_of
from lockgate.core.events import VersionJudged
from lockgate.core.verdict import CheckResult, Verdict
from lockgate.gates.api import Asked, Subject

GIVEN = "approved"
"""The `gate` of what records one person's yes."""


class ApprovalSettings(BaseModel):
    """How many have to say yes, and who may."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    count: Annotated[int, Field(ge=1, le=100)] = 1
    by: tuple[str, ...] = Field(default=(), description="who may; nobody named: anybody")
    lasts_s: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="seconds until a yes is too old"
    )


class Approval:
    """Counts recorded approvals of different people."""

    name = "approval"
    remedy = "approve"
    settings = ApprovalSettings

    def reads(self, settings: ApprovalSettings, asked: Asked) -> Sequence[Path]:
        """See `Gate.reads`."""
        return ()

    def judge(self, settings: ApprovalSettings, asked: Asked) -> Verdict:
        """See `Gate.judge`."""
        given = list(_given(settings, asked))
        enough = len(given) >= settings.count
        said = "; ".join(given) or "nobody has said yes"
        reason = f"{len(given)} of {settings.count} approvals: {said}"
        check = CheckResult(
            check="approvals", signal="approvals", outcome="pass" if enough else "hold",
            reason=reason, value=float(len(given)), limit=float(settings.count),
        )  # fmt: skip
        return Verdict(outcome=check.outcome, reason=reason, at=asked.now, checks=(check,))


def _given(settings: ApprovalSettings, asked: Asked) -> Iterator[str]:
    """Yields `ann: why`, one for each person whose last word counts."""
    for judged in asked.candidate.judged:
        if judged.gate != GIVEN or judged.target != asked.target:
            continue
        who = judged.verdict.checks[0].check if judged.verdict.checks else ""
        old = settings.lasts_s is not None and asked.now - judged.verdict.at > settings.lasts_s
        if judged.verdict.outcome == "pass" and not old and (not settings.by or who in settings.by):
            yield f"{who}: {judged.verdict.reason}"


def approved(subject: Subject, target: str, *, by: str, reason: str, now: float) -> VersionJudged:
    """Returns the record of one person's yes; a later one of the same person replaces it."""
    check = CheckResult(check=by, signal="approval", outcome="pass", reason=reason)
    body = [GIVEN, subject.digest, target, by]
    return VersionJudged(
        model=subject.model, number=subject.number, digest=subject.digest, target=target,
        gate=GIVEN, question=digest_of(canonical.encode(body)),
        verdict=Verdict(outcome="pass", reason=reason, at=now, checks=(check,)),
    )  # fmt: skip
