"""The gate `fairness` asks whether groups of people get other decisions, or worse ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from lockgate.core.errors import UsageError
from lockgate.core.verdict import CheckResult, Outcome, Verdict
from lockgate.gates.api import Asked, verdict_of
from lockgate.gates.measure.intervals import drawn_interval
from lockgate.gates.measure.metrics import Gap, gaps
from lockgate.gates.tasks.interview import interview, suite_files

_LACKING = {
    "opportunity": "no row of theirs is a yes in truth",
    "false_alarm": "no row of theirs is a no in truth",
}
Share = Annotated[float, Field(ge=0, le=1)]


class FairnessSettings(BaseModel):
    """Largest gaps between groups, each a difference of two rates."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    suite: str
    task: str = Field(description="a table with 'group'")
    selection: Share | None = Field(default=None, description="rates of yes (demographic parity)")
    opportunity: Share | None = Field(default=None, description="of yes where yes is true")
    false_alarm: Share | None = Field(default=None, description="of yes where no is true")
    accuracy: Share | None = Field(default=None, description="of right decisions")
    threshold: Share = Field(default=0.5, description="a chance from here on is a yes")
    smallest_group: Annotated[int, Field(ge=1)] = Field(
        default=30, description="with fewer rows in a group the gate holds"
    )


class Fairness:
    """Gaps of rates between groups; parity is not justice, and some gaps exclude each other."""

    name = "fairness"
    remedy = "retrain"
    settings = FairnessSettings

    def reads(self, settings: FairnessSettings, asked: Asked) -> Sequence[Path]:
        """See `Gate.reads`."""
        return suite_files(settings.suite, asked)

    def judge(self, settings: FairnessSettings, asked: Asked) -> Verdict:
        """See `Gate.judge`."""
        answered = interview(settings.suite, asked.candidate, asked).get(settings.task)
        if answered is None or answered.groups is None:
            raise UsageError(
                f"the suite has no task {settings.task!r} with groups",
                hint="name a table task that has 'group'",
            )
        names, counts = np.unique(answered.groups, return_counts=True)
        small = [f"{n} ({c})" for n, c in zip(names, counts, strict=True)
                 if c < settings.smallest_group]  # fmt: skip
        if small or len(names) < 2:
            said = f"groups are too small to compare: {', '.join(small) or 'there is one only'}"
            return Verdict(outcome="hold", reason=said, at=asked.now)
        said_yes = (answered.chances >= settings.threshold).astype(np.int64)
        checks = []
        for gap in gaps(answered.labels, said_yes, answered.groups):
            limit = getattr(settings, gap.name)
            if limit is not None:
                span = _span(gap.name, answered, said_yes)
                checks.append(_check(gap, limit, span, len(said_yes), list(map(str, names))))
        return verdict_of(checks, asked.now)


def _span(name: str, answered: Any, said: Any) -> tuple[float, float]:
    def over(rows: Any) -> float:
        found = gaps(answered.labels[rows], said[rows], answered.groups[rows])
        return next(gap.value for gap in found if gap.name == name)

    return drawn_interval(over, len(said))


def _check(
    gap: Gap, limit: float, span: tuple[float, float], rows: int, names: Sequence[str]
) -> CheckResult:
    unknown = [name for name in names if name not in gap.rates]
    if unknown:
        said = f"{gap.name} can't be told for {', '.join(unknown)}: {_LACKING[gap.name]}"
        return CheckResult(
            check=f"gap of {gap.name}", signal=gap.name, outcome="hold", reason=said, limit=limit,
            n=rows,
        )  # fmt: skip
    outcome: Outcome = "pass" if gap.value <= limit else "fail"
    said = (
        f"{gap.name} differs by {gap.value:.3f} ({span[0]:.3f} to {span[1]:.3f}): "
        f"{gap.high_group} {gap.rates.get(gap.high_group, 0):.3f}, "
        f"{gap.low_group} {gap.rates.get(gap.low_group, 0):.3f}; at most {limit:g} is allowed"
    )
    return CheckResult(
        check=f"gap of {gap.name}", signal=gap.name, outcome=outcome, reason=said, value=gap.value,
        limit=limit, low=span[0], high=span[1], n=rows,
    )  # fmt: skip
