"""A verdict: `pass`, `fail` or `hold`, always with its numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["pass", "fail", "hold"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """What one check saw.

    `value` and `baseline` are the signal's estimates for candidate and baseline in the signal's
    unit, `limit` the worst value that the check allows, `e_value` the evidence against "no worse
    than the limit allows" (fail at 1/alpha), `n` and `n_baseline` the samples judged.
    """

    check: str
    signal: str
    outcome: Outcome
    reason: str
    value: float | None = None
    baseline: float | None = None
    limit: float | None = None
    e_value: float | None = None
    threshold: float | None = None
    n: int = 0
    n_baseline: int = 0
    unit: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The judgement of a candidate at one moment, over all its checks."""

    outcome: Outcome
    reason: str
    at: float
    checks: tuple[CheckResult, ...] = ()

    @property
    def blame(self) -> tuple[CheckResult, ...]:
        """The checks that failed, strongest evidence first."""
        failed = [check for check in self.checks if check.outcome == "fail"]
        return tuple(sorted(failed, key=lambda check: -(check.e_value or 0.0)))
