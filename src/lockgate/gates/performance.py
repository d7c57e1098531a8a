"""The gate `performance`: how fast it answers at a stated load, on its real runtime.

Requests begin at times that do not depend on answers (open loop), so that a slow version is seen
waiting, not asked less. Compared versions get the same requests in turns, half and half, so that a
busy machine is busy for both.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from lockgate.core.document import ours
from lockgate.core.errors import TemporaryError
from lockgate.core.units import parse_duration, parse_ratio, parse_size
from lockgate.core.verdict import CheckResult, Outcome, Verdict
from lockgate.gates.api import Asked, Served, Subject, verdict_of
from lockgate.gates.tasks.questions import read_rows

Ratio = Annotated[float, BeforeValidator(ours(parse_ratio))]
Duration = Annotated[float, BeforeValidator(ours(parse_duration))]
Size = Annotated[int, BeforeValidator(ours(parse_size))]
_PARTS = 4
_MOST_THREADS = 256


class Limit(BaseModel):
    """What one figure may be: alone, against what serves, or both."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    at_least: float | None = None
    at_most: float | None = None
    worse_by_at_most: Ratio | None = None


class PerformanceSettings(BaseModel):
    """The load, and what the figures may be."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    requests: str = Field(
        description="JSON lines with 'path' and 'body': a file, or owner/name:v1/path"
    )
    rate: Annotated[float, Field(gt=0, le=10_000)] = Field(
        default=5.0, description="requests begun in a second"
    )
    last: Duration = Field(default=10.0, description="how long each version is asked")
    warm_up: Annotated[int, Field(ge=0, le=10_000)] = Field(
        default=8, description="requests before, that are not counted"
    )
    seconds: dict[Literal["latency_p50", "latency_p95", "latency_p99"], Limit] = Field(
        default_factory=dict, description="times to the whole answer"
    )
    tokens_per_second: Limit | None = Field(
        default=None, description="completion tokens of all answers a second of serving"
    )
    errors: Ratio = Field(default=0.0, description="share of requests that may fail")
    memory: Size | None = Field(default=None, description="resident bytes at the end of the load")
    price_per_hour: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="what the machine costs an hour"
    )
    cost_per_1000_tokens: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="at most, in the price's currency, at this load"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a version did under load: seconds of each answer, tokens, failures."""

    seconds: tuple[float, ...] = ()
    tokens: int = 0
    failed: int = 0
    busy_s: float = 0.0
    memory: int = 0

    def figures(self, price: float | None) -> dict[str, float]:
        """Returns the figures by name; `cost_per_1000_tokens` with a price an hour."""
        times = np.array(self.seconds or (float("inf"),))
        found = {f"latency_p{p}": float(np.quantile(times, p / 100)) for p in (50, 95, 99)}
        asked = len(self.seconds) + self.failed
        found["errors"] = self.failed / asked if asked else 1.0
        rate = self.tokens / self.busy_s if self.busy_s else 0.0
        found["tokens_per_second"] = rate
        found["memory"] = float(self.memory)
        if price is not None:
            found["cost_per_1000_tokens"] = price / 3.6 / rate if rate else float("inf")
        return found


class Performance:
    """Latency, throughput, memory and cost under load."""

    name = "performance"
    remedy = "change"
    settings = PerformanceSettings

    def reads(self, settings: PerformanceSettings, asked: Asked) -> Sequence[Path]:
        """See `Gate.reads`."""
        return (asked.files(settings.requests),)

    def judge(self, settings: PerformanceSettings, asked: Asked) -> Verdict:
        """See `Gate.judge`."""
        limits: dict[str, Limit] = {str(name): limit for name, limit in settings.seconds.items()}
        if settings.tokens_per_second is not None:
            limits["tokens_per_second"] = settings.tokens_per_second
        compared = any(limit.worse_by_at_most is not None for limit in limits.values())
        subjects = [asked.candidate]
        if asked.baseline is not None and compared:
            subjects.append(asked.baseline)
        loads = _measure(settings, subjects, asked)
        ours_, *rest = (load.figures(settings.price_per_hour) for load in loads)
        other = rest[0] if rest else None
        limits["errors"] = Limit(at_most=settings.errors)
        if settings.memory is not None:
            limits["memory"] = Limit(at_most=float(settings.memory))
        if settings.cost_per_1000_tokens is not None and "cost_per_1000_tokens" in ours_:
            limits["cost_per_1000_tokens"] = Limit(at_most=settings.cost_per_1000_tokens)
        count = len(loads[0].seconds)
        checks = [
            check
            for name, limit in limits.items()
            for check in _checks(name, limit, ours_[name], (other or {}).get(name), count)
        ]
        return verdict_of(checks, asked.now)


def _measure(
    settings: PerformanceSettings, subjects: Sequence[Subject], asked: Asked
) -> list[Load]:
    rows = read_rows(asked.files(settings.requests))
    served = [asked.serve(subject) for subject in subjects]
    for one in served:
        for number in range(settings.warm_up):
            _ask(one, rows[number % len(rows)])
    loads = [Load() for _ in served]
    for part in range(_PARTS):
        for index, one in enumerate(served):
            asked.tell(f"load on {subjects[index]}", part * len(served) + index,
                       _PARTS * len(served))  # fmt: skip
            found = _load(one, rows, settings.rate, settings.last / _PARTS, asked.seed + part)
            loads[index] = _join(loads[index], found)
    return loads


def _join(one: Load, other: Load) -> Load:
    return Load(
        seconds=one.seconds + other.seconds, tokens=one.tokens + other.tokens,
        failed=one.failed + other.failed, busy_s=one.busy_s + other.busy_s,
        memory=max(one.memory, other.memory),
    )  # fmt: skip


def _load(
    served: Served, rows: Sequence[Mapping[str, Any]], rate: float, last: float, seed: int
) -> Load:
    """Begins `rate` requests a second for `last` seconds; waits for all answers.

    A request's time counts from when it should have begun, so that waiting in line is not left out.
    """
    draw = np.random.default_rng(seed)
    count = max(1, round(rate * last))
    chosen = draw.integers(0, len(rows), count)
    began = time.monotonic()

    def ask(number: int) -> tuple[float, int] | None:
        due = began + number / rate
        time.sleep(max(0.0, due - time.monotonic()))
        tokens = _ask(served, rows[int(chosen[number])])
        return None if tokens is None else (time.monotonic() - due, tokens)

    with ThreadPoolExecutor(min(_MOST_THREADS, count), thread_name_prefix="load") as pool:
        found = list(pool.map(ask, range(count)))
    good = [item for item in found if item is not None]
    return Load(
        seconds=tuple(seconds for seconds, _ in good), tokens=sum(tokens for _, tokens in good),
        failed=len(found) - len(good), busy_s=time.monotonic() - began, memory=served.memory(),
    )  # fmt: skip


def _ask(served: Served, row: Mapping[str, Any]) -> int | None:
    """Returns the completion tokens of one answer; None when there was none."""
    body = row.get("body", {})
    try:
        said = served.post(str(row.get("path", "/v1/chat/completions")), body)
        usage = said.get("usage") or {}
        return int(usage.get("completion_tokens", 0))
    except (TemporaryError, json.JSONDecodeError, TypeError, ValueError):
        return None


def _checks(
    name: str, limit: Limit, value: float, baseline: float | None, count: int
) -> Iterator[CheckResult]:
    higher = name == "tokens_per_second"
    wanted: list[tuple[str, float, Callable[[float, float], bool]]] = []
    if limit.at_most is not None:
        wanted.append(("at most", limit.at_most, lambda found, most: found <= most))
    if limit.at_least is not None:
        wanted.append(("at least", limit.at_least, lambda found, least: found >= least))
    if limit.worse_by_at_most is not None and baseline is not None:
        away = 1 - limit.worse_by_at_most if higher else 1 + limit.worse_by_at_most
        side = "at least" if higher else "at most"
        compare = (lambda a, b: a >= b) if higher else (lambda a, b: a <= b)
        wanted.append((side, baseline * away, compare))
    for side, bound, fits in wanted:
        outcome: Outcome = "pass" if fits(value, bound) else "fail"
        was = "" if baseline is None else f", what serves has {baseline:.4g}"
        yield CheckResult(
            check=f"{name} {side} {bound:.4g}", signal=name, outcome=outcome, value=value,
            baseline=baseline, limit=bound, n=count, unit="s" if "latency" in name else "",
            reason=f"{name} is {value:.4g}{was}, {side} {bound:.4g} is wanted",
        )  # fmt: skip
