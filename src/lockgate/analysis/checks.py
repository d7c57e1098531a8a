"""Checks and signals: what is compared, and how much worse is too much. No NumPy here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from lockgate.core.errors import UsageError
from lockgate.core.traffic import Sample
from lockgate.core.verdict import Verdict

_QUANTILE = re.compile(r"(ttft|latency|tpot)_(mean|p(\d\d))")
_UNITS = {"ttft": "s", "latency": "s", "tpot": "s/token"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """A named series read from samples.

    `measure` is what one sample gives: `error` (0 or 1), `ttft` (s to the first body byte),
    `latency` (s), `tpot` (s a token after the first), `throughput` (completion tokens/s).
    `quantile` None means the mean. `worse` is the direction that hurts callers.
    """

    name: str
    measure: Literal["error", "ttft", "latency", "tpot", "throughput"]
    unit: str
    quantile: float | None = None
    worse: Literal["up", "down"] = "up"


def find_signal(name: str) -> Signal:
    """Returns the signal called `name`; raises UsageError for a name that is none.

    `error_rate`, `tokens_per_second`, and `ttft`, `latency` or `tpot` with `_mean` or `_p50` …
    `_p99`.
    """
    if name == "error_rate":
        return Signal(name=name, measure="error", unit="")
    if name == "tokens_per_second":
        return Signal(name=name, measure="throughput", unit="tokens/s", worse="down")
    match = _QUANTILE.fullmatch(name)
    if not match or match[3] == "00":
        raise UsageError(
            f"{name!r} is not a signal",
            hint="signals are error_rate, tokens_per_second, and ttft, latency or tpot with "
            "_mean, _p50, _p95 or another percentile",
        )
    quantile = int(match[3]) / 100 if match[3] else None
    measure: Literal["ttft", "latency", "tpot"] = match[1]  # type: ignore[assignment]
    return Signal(name=name, measure=measure, unit=_UNITS[measure], quantile=quantile)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One comparison rule over a signal.

    `worse_by_at_most` (a share: 0.1 is 10 %) compares with the baseline over the same time;
    `at_most` (for `tokens_per_second`: at least) is absolute, in the signal's unit. `floor`: a
    candidate no worse than this value never fails the relative rule.
    """

    signal: str
    worse_by_at_most: float | None = None
    at_most: float | None = None
    floor: float | None = None

    @property
    def name(self) -> str:
        """How people read it: `ttft_p95 worse by at most 10%`."""
        if self.worse_by_at_most is not None:
            return f"{self.signal} worse by at most {self.worse_by_at_most:.4g}"
        word = "at least" if find_signal(self.signal).worse == "down" else "at most"
        return f"{self.signal} {word} {self.at_most:.6g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeRules:
    """How a candidate is judged.

    `alpha` bounds the probability of ever failing a candidate that meets every check, whenever
    one looks. `min_requests` of the candidate in the step are needed to pass. Times in seconds.
    """

    checks: tuple[Check, ...]
    alpha: float = 0.01
    min_requests: int = 100
    bucket_s: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The samples to judge: all of the release's, those of the step from `step_from` on."""

    samples: Sequence[Sample]
    candidate: str
    baseline: str | None
    step_from: float
    now: float


class Judge(Protocol):
    """Turns a window into a verdict; the same window always gives the same verdict."""

    def judge(self, window: Window, rules: JudgeRules) -> Verdict:
        """Returns `pass`, `fail` or `hold` with the numbers of every check."""
        ...
