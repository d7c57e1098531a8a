"""Blue-green: everybody at once, the old version kept ready; judged by fixed limits alone."""

from __future__ import annotations

from lockgate.core.traffic import WHOLE
from lockgate.release.plan import Step
from lockgate.release.spec.shape import StrategySpec


def steps(strategy: StrategySpec) -> tuple[Step, ...]:
    """Returns the one step."""
    return (
        Step(
            weight=WHOLE,
            bake_s=strategy.bake,
            min_requests=strategy.min_requests,
            need=strategy.until or "safe",
        ),
    )
