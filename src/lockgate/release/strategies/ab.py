"""A/B: one share for a fixed time, then the verdict; by user where the spec is sticky."""

from __future__ import annotations

from lockgate.core.traffic import WHOLE
from lockgate.release.plan import Step
from lockgate.release.spec.shape import AbSpec, StrategySpec


def steps(strategy: StrategySpec) -> tuple[Step, ...]:
    """Returns the test, and the step to everybody that its verdict opens."""
    test = strategy.ab or AbSpec()
    return (
        Step(
            weight=round(test.share * WHOLE / 100),
            bake_s=test.last,
            min_requests=strategy.min_requests,
            need=strategy.until or "safe",
        ),
        Step(weight=WHOLE, bake_s=strategy.bake, min_requests=0, need="seen"),
    )
