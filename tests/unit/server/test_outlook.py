"""What a plan says before it starts: rates and spreads are those of the traffic that was seen."""

from __future__ import annotations

import random
from dataclasses import replace

from lockgate.analysis.checks import Check
from lockgate.cli.views import plan_lines
from lockgate.core.events import VersionId
from lockgate.core.traffic import Sample
from lockgate.release.plan import Plan, Serving, Step
from lockgate.server.api.views import plan_view
from lockgate.server.outlook import outlook

PLAN = Plan(
    model="a/b", target="local", route="a/b@local", strategy="canary", serving=Serving(),
    candidate=VersionId(number=2, digest="new"), baseline=VersionId(number=1, digest="old"),
    steps=(Step(weight=100, bake_s=60), Step(weight=5_000, bake_s=60), Step(weight=10_000)),
    checks=(Check(signal="error_rate", worse_by_at_most=0.5, floor=0.02),
            Check(signal="latency_mean", worse_by_at_most=0.1)),
)  # fmt: skip


def traffic(count: int, rate: float, errors: float = 0.0, spread: float = 0.5) -> list[Sample]:
    draw = random.Random(1)
    return [
        Sample(at=1000 + i / rate, route="a/b@local", version="old", propensity=1.0, revision=1,
               status=500 if draw.random() < errors else 200,
               duration_s=draw.lognormvariate(0, spread), first_body_s=0.1)
        for i in range(count)
    ]  # fmt: skip


def test_it_says_how_long_proof_takes_at_the_traffic_of_the_last_hour() -> None:
    slow, fast = outlook(PLAN, traffic(2000, 1.0)), outlook(PLAN, traffic(2000, 50.0))
    assert slow is not None
    assert fast is not None
    assert slow["rate"] == 1.0
    assert slow["safe_s"] > 5 * fast["safe_s"]
    told = "\n".join(plan_lines({**plan_view(PLAN), "outlook": slow}))
    assert "probably" in told
    assert "at 50%  latency_mean is proven after" in told


def test_wide_spreads_and_many_errors_take_longer() -> None:
    def needs(found: object, signal: str) -> float:
        assert isinstance(found, dict)
        return next(c["safe_requests"] for c in found["checks"]
                    if (c["signal"], c["share"]) == (signal, 0.5))  # fmt: skip

    calm, wide = (
        outlook(PLAN, traffic(2000, 9, spread=0.2)),
        outlook(PLAN, traffic(2000, 9, spread=1)),
    )
    assert needs(wide, "latency_mean") > 3 * needs(calm, "latency_mean")
    errors = outlook(PLAN, traffic(2000, 9, errors=0.015))
    assert needs(errors, "error_rate") > 3 * needs(calm, "error_rate")


def test_nothing_is_said_where_nothing_is_known() -> None:
    assert outlook(PLAN, []) is None
    assert outlook(PLAN, traffic(1, 1.0)) is None
    assert outlook(replace(PLAN, baseline=None), traffic(100, 1.0)) is None
    assert outlook(replace(PLAN, checks=()), traffic(100, 1.0)) is None
    same_time = [replace(row, at=5.0) for row in traffic(10, 1.0)]
    assert outlook(PLAN, same_time) is None
