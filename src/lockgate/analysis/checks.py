"""Checks and signals: what is compared, and how much worse is too much. No NumPy here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from lockgate.core.errors import UsageError
from lockgate.core.traffic import Sample
from lockgate.core.verdict import Verdict

Measure = Literal[
    "error", "timeout", "refusal", "mark",
    "ttft", "latency", "tpot", "throughput", "tokens", "score",
]  # fmt: skip
"""What one sample gives: the first four are 0 or 1, the others a number."""

_STATISTIC = re.compile(r"([a-z][a-z0-9_]*)_(mean|p(\d\d))")
_RATE = re.compile(r"([a-z][a-z0-9_]*)_rate")
_UNITS = {"ttft": "s", "latency": "s", "tpot": "s/token"}
_EVENTS = ("error", "timeout", "refusal")
_RESERVED = {*_UNITS, *_EVENTS, "throughput", "tokens_per_second", "output_tokens", "mark", "score"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """A named series read from samples.

    `measure` is what one sample gives: `error`, `timeout`, `refusal` (0 or 1), `ttft` (s to the
    first body byte), `latency` (s), `tpot` (s a token after the first), `throughput` (completion
    tokens/s), `tokens`; `mark` (0 or 1) and `score` (0 to 1) are what the scorer called `key` said.
    `quantile` None means the mean. `worse` is the direction that hurts callers.
    """

    name: str
    measure: Measure
    unit: str
    quantile: float | None = None
    worse: Literal["up", "down"] = "up"
    key: str = ""

    @property
    def event(self) -> bool:
        """True for a rate: each sample is 0 or 1."""
        return self.measure in (*_EVENTS, "mark")

    @property
    def column(self) -> str:
        """The name of the column of rows that it reads."""
        return f"{self.measure}:{self.key}" if self.key else self.measure


def find_signal(name: str) -> Signal:
    """Returns the signal called `name`; raises UsageError for a name that is none.

    `error_rate`, `timeout_rate`, `refusal_rate`, `tokens_per_second`; `ttft`, `latency`, `tpot` or
    `output_tokens` with `_mean` or `_p50` … `_p99`; for a scorer called `x`: `x_rate` (its score is
    0 or 1, and 1 is bad), `x_mean` and `x_p05` (from 0 to 1, and more is better); `quality` is
    `quality_mean`.
    """
    if name == "tokens_per_second":
        return Signal(name=name, measure="throughput", unit="tokens/s", worse="down")
    if name == "quality":
        return Signal(name=name, measure="score", unit="", worse="down", key="quality")
    if (rate := _RATE.fullmatch(name)) and rate[1] not in _RESERVED - {*_EVENTS}:
        if rate[1] in _EVENTS:
            return Signal(name=name, measure=rate[1], unit="")  # type: ignore[arg-type]
        return Signal(name=name, measure="mark", unit="", key=rate[1])
    match = _STATISTIC.fullmatch(name)
    if not match or match[3] == "00" or not _known(match[1]):
        raise UsageError(
            f"{name!r} is not a signal",
            hint="signals are error_rate, timeout_rate, refusal_rate, tokens_per_second, quality; "
            "ttft, latency, tpot or output_tokens with _mean, _p50, _p95 or another percentile; "
            "and a scorer's name with _rate, _mean or a percentile",
        )
    quantile = int(match[3]) / 100 if match[3] else None
    if match[1] in _UNITS:
        measure: Measure = match[1]  # type: ignore[assignment]
        return Signal(name=name, measure=measure, unit=_UNITS[measure], quantile=quantile)
    if match[1] == "output_tokens":
        return Signal(name=name, measure="tokens", unit="tokens", quantile=quantile)
    return Signal(
        name=name, measure="score", unit="", quantile=quantile, worse="down", key=match[1]
    )


def _known(base: str) -> bool:
    times = base in _UNITS or base == "output_tokens"
    return times or (base not in _RESERVED and not base.endswith(("_rate", "_mean")))


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One comparison rule over a signal.

    `worse_by_at_most` (a share: 0.1 is 10 %) compares with the baseline over the same time: to
    pass is to be proven within it. To fail is to be proven worse by more than `tolerate` (None: the
    same share). `at_most` (for `tokens_per_second`: at least) is absolute, in the signal's unit.
    `floor`: a candidate no worse than this value never fails the relative rule. `dry_run`: it is
    reported and decides nothing.
    """

    signal: str
    worse_by_at_most: float | None = None
    at_most: float | None = None
    floor: float | None = None
    tolerate: float | None = None
    dry_run: bool = False

    @property
    def name(self) -> str:
        """How people read it: `ttft_p95 worse by at most 10%`."""
        if self.worse_by_at_most is not None:
            return f"{self.signal} worse by at most {self.worse_by_at_most:.4g}"
        word = "at least" if find_signal(self.signal).worse == "down" else "at most"
        return f"{self.signal} {word} {self.at_most:.6g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeRules:
    """How a candidate is judged, over the whole release.

    `alpha` bounds the probability of ever failing a candidate that meets every check, `beta` that
    of ever calling one safe that is worse by more than a check allows; both whenever one looks.
    `adjust` names covariates known before the assignment that are regressed out of times. `slo` is
    the share of requests that shall not fail: a candidate that burns its error budget too fast
    fails, whatever the baseline does (None: no such objective). Times in
    seconds: the length of a bucket, and how long after its end a bucket waits at most.
    """

    checks: tuple[Check, ...]
    alpha: float = 0.01
    beta: float = 0.05
    bucket_s: float = 10.0
    max_lag_s: float = 600.0
    adjust: tuple[str, ...] = ()
    slo: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What is asked of a case at a moment.

    `need`: `safe`: proof against every margin; `sane`: proof against disasters; `seen`: requests
    alone. `min_requests` of the candidate are needed from revision `since_revision` on. `now` is
    in seconds since the epoch, for the verdict's stamp alone.
    """

    now: float
    need: Literal["safe", "sane", "seen"] = "safe"
    min_requests: int = 0
    since_revision: int = 0


class Case(Protocol):
    """The evidence for and against one candidate: grows row by row, in sums of bounded size."""

    def add(self, samples: Sequence[Sample]) -> None:
        """Takes the next samples of the log, in the order in which they were recorded."""
        ...

    def verdict(self, look: Look) -> Verdict:
        """Returns `pass`, `fail` or `hold` with the numbers of every check; changes nothing."""
        ...

    def state(self) -> Mapping[str, object]:
        """Returns the case as JSON values, for `Judge.resume`."""
        ...


class Judge(Protocol):
    """Opens cases; the same log always gives the same verdicts."""

    def open(self, rules: JudgeRules, *, candidate: str, baseline: str | None) -> Case:
        """Returns a case without evidence between two versions (their digests)."""
        ...

    def resume(
        self,
        rules: JudgeRules,
        state: Mapping[str, object],
        *,
        candidate: str,
        baseline: str | None,
    ) -> Case:
        """Returns the case that `state` was taken of; raises IntegrityError for another one's."""
        ...
