"""Shadow: copies of requests whose answers no caller waits for; what follows is a canary."""

from __future__ import annotations

from lockgate.core.traffic import WHOLE
from lockgate.release.plan import Step
from lockgate.release.spec.shape import ShadowSpec, StrategySpec
from lockgate.release.strategies import canary


def steps(strategy: StrategySpec) -> tuple[Step, ...]:
    """Returns the shadow, then the canary's steps (or everybody at once)."""
    shadow = strategy.shadow or ShadowSpec()
    first = Step(
        weight=0,
        mirror=round(shadow.share * WHOLE / 100),
        bake_s=shadow.last,
        min_requests=shadow.min_requests,
        need="sane",
    )
    return (first, *canary.steps(strategy))
