"""Canary: a growing share, each step left on evidence.

Early steps are left once disasters are ruled out; the last one with two versions once the candidate
is proven to be within every margin. At 100 % there is nothing left to compare with.
"""

from __future__ import annotations

from lockgate.core.traffic import WHOLE
from lockgate.release.plan import Need, Step
from lockgate.release.spec.shape import StepSpec, StrategySpec


def steps(strategy: StrategySpec) -> tuple[Step, ...]:
    """Returns one step for each share."""
    shares = strategy.canary or (StepSpec(share=100.0),)
    last = len(shares) - 2
    return tuple(_step(strategy, step, index == last) for index, step in enumerate(shares))


def _step(strategy: StrategySpec, step: StepSpec, last: bool) -> Step:
    return Step(
        weight=round(step.share * WHOLE / 100),
        bake_s=strategy.bake if step.bake is None else step.bake,
        min_requests=strategy.min_requests if step.min_requests is None else step.min_requests,
        need=step.until or strategy.until or _need(step, last),
        max_s=step.max,
    )


def _need(step: StepSpec, last: bool) -> Need:
    if step.share >= 100:
        return "seen"
    return "safe" if last else "sane"
