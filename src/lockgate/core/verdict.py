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
    than the limit allows" (fail at `threshold`, 1/alpha), `proof` the evidence against "worse than
    the limit" (pass at `proof_threshold`, 1/beta). `low` and `high` are the confidence sequence of
    the difference as a share of the baseline (0.1: 10 % more). `n` and `n_baseline` are the samples
    judged, `missing` how many more of the candidate the proof will probably take. `dry_run`: the
    check decides nothing.
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
    proof: float | None = None
    proof_threshold: float | None = None
    low: float | None = None
    high: float | None = None
    missing: int | None = None
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The judgement of a candidate at one moment, over all its checks.

    `requests`: of the candidate since the step began. `ready_in_s`: when a `hold` will probably be
    known to be something else, in seconds from `at`, at the rate of requests so far.
    """

    outcome: Outcome
    reason: str
    at: float
    checks: tuple[CheckResult, ...] = ()
    ready_in_s: float | None = None
    requests: int = 0

    @property
    def blame(self) -> tuple[CheckResult, ...]:
        """The checks that failed, strongest evidence first."""
        failed = [check for check in self.checks if check.outcome == "fail"]
        return tuple(sorted(failed, key=lambda check: -(check.e_value or 0.0)))
