"""The gate `performance`: how fast it answers at a stated load, on its real runtime.

Requests begin at times that do not depend on answers (open loop), so that a slow version is seen
waiting, not asked less. Compared versions get the same requests in turns, half and half, so that a
busy machine is busy for both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from lockgate.core.document import ours
from lockgate.core.errors import UsageError
from lockgate.core.units import parse_duration, parse_ratio, parse_size
from lockgate.core.verdict import CheckResult, Outcome, Verdict
from lockgate.gates.api import Asked, Subject, verdict_of
from lockgate.gates.measure.load import Load, ask, join, put_load, requests_of
from lockgate.gates.tasks.questions import read_rows

Ratio = Annotated[float, BeforeValidator(ours(parse_ratio))]
Duration = Annotated[float, BeforeValidator(ours(parse_duration))]
Size = Annotated[int, BeforeValidator(ours(parse_size))]
Time = Literal[
    "latency_p50", "latency_p95", "latency_p99", "ttft_p50", "ttft_p95", "ttft_p99",
    "tpot_p50", "tpot_p95", "tpot_p99",
]  # fmt: skip
Figures = Mapping[str, float]
_TIMES = get_args(Time)
_PARTS = 4
_WHY_NOT = {
    "memo": "its processes are not ours to see",
    "ttft": "no streamed answer said anything",
    "tpot": "no streamed answer had two tokens",
}


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
    stream: bool = Field(
        default=False, description="have every answer of a language model streamed"
    )
    seconds: dict[Time, Limit] = Field(
        default_factory=dict,
        description="latency: to the whole answer; ttft: to the first token; tpot: between tokens",
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
        checks = [
            check
            for name, limit in limits.items()
            for check in _checks(name, limit, ours_, other, _count(name, loads[0]))
        ]
        return verdict_of(checks, asked.now)


def _measure(
    settings: PerformanceSettings, subjects: Sequence[Subject], asked: Asked
) -> list[Load]:
    requests = requests_of(read_rows(asked.files(settings.requests)), stream=settings.stream)
    if any(_of_stream(name) for name in settings.seconds) and not any(r.stream for r in requests):
        raise UsageError(
            "no request streams its answer, so that no token can be timed",
            hint="set 'stream: true', or \"stream\": true in a request's body",
        )
    served = [asked.serve(subject) for subject in subjects]
    for one in served:
        for number in range(settings.warm_up):
            ask(one, requests[number % len(requests)])
    loads = [Load() for _ in served]
    for part in range(_PARTS):
        for index, one in enumerate(served):
            asked.tell(f"load on {subjects[index]}", part * len(served) + index,
                       _PARTS * len(served))  # fmt: skip
            found = put_load(one, requests, settings.rate, settings.last / _PARTS,
                             asked.seed + part)  # fmt: skip
            loads[index] = join(loads[index], found)
    return loads


def _of_stream(name: str) -> bool:
    return name.startswith(("ttft", "tpot"))


def _count(name: str, load: Load) -> int:
    of = {"ttft": load.first, "tpot": load.between}
    return len(of.get(name[:4], load.seconds))


def _checks(
    name: str, limit: Limit, ours_: Figures, other: Figures | None, count: int
) -> Iterator[CheckResult]:
    value = ours_.get(name)
    baseline = other.get(name) if other else None
    lost = limit.worse_by_at_most is not None and other is not None and baseline is None
    if value is None or lost:
        whose = " of what serves" if lost else ""
        yield CheckResult(
            check=name, signal=name, outcome="hold", n=count,
            value=value, baseline=baseline,
            reason=f"{name}{whose} was not measured: {_WHY_NOT[name[:4]]}",
        )  # fmt: skip
        return
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
            baseline=baseline, limit=bound, n=count, unit="s" if name in _TIMES else "",
            reason=f"{name} is {value:.4g}{was}, {side} {bound:.4g} is wanted",
        )  # fmt: skip
