"""The gate `budget`: what a version may take at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from lockgate.core.document import ours
from lockgate.core.units import parse_ratio, parse_size, size
from lockgate.core.verdict import CheckResult, Verdict
from lockgate.gates.api import Asked, verdict_of

Size = Annotated[int, BeforeValidator(ours(parse_size))]
Ratio = Annotated[float, BeforeValidator(ours(parse_ratio))]


class BudgetSettings(BaseModel):
    """Limits on bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: Size | None = Field(default=None, description="the version's bytes, as 10GB")
    grown_by_at_most: Ratio | None = Field(
        default=None, description="against the version that serves, as 10%"
    )


class Budget:
    """Bytes of the version, and against what serves."""

    name = "budget"
    remedy = "change"
    settings = BudgetSettings

    def reads(self, settings: BudgetSettings, asked: Asked) -> Sequence[Path]:
        """See `Gate.reads`."""
        return ()

    def judge(self, settings: BudgetSettings, asked: Asked) -> Verdict:
        """See `Gate.judge`."""
        found = asked.candidate.size
        checks = []
        if settings.size is not None:
            checks.append(_check("size", found, settings.size))
        if settings.grown_by_at_most is not None and asked.baseline is None:
            said = "nothing serves there, so there is nothing to have grown from"
            checks.append(CheckResult(check="growth", signal="bytes", outcome="pass", reason=said,
                                      value=float(found), unit="bytes"))  # fmt: skip
        if settings.grown_by_at_most is not None and asked.baseline is not None:
            limit = round(asked.baseline.size * (1 + settings.grown_by_at_most))
            checks.append(_check("growth", found, limit, asked.baseline.size))
        return verdict_of(checks, asked.now)


def _check(name: str, found: int, limit: int, baseline: int | None = None) -> CheckResult:
    fits = found <= limit
    said = f"it has {size(found)}, {'at most' if fits else 'more than the'} {size(limit)} allowed"
    return CheckResult(
        check=name, signal="bytes", outcome="pass" if fits else "fail", reason=said,
        value=float(found), limit=float(limit), unit="bytes",
        baseline=None if baseline is None else float(baseline),
    )  # fmt: skip
