"""Rolling: replicas are replaced batch by batch, and traffic follows them; in place without surge.

With enough surge a batch of the candidate starts beside the whole baseline, takes its share, and
then a batch of the baseline goes. Without it, room is made first: traffic moves to what stays, as
much of the baseline ends as is lacking, and the candidate's replicas start where it was.
"""

from __future__ import annotations

from lockgate.core.errors import UsageError
from lockgate.core.traffic import WHOLE
from lockgate.release.plan import Step
from lockgate.release.spec.shape import RollingSpec, StrategySpec


def steps(strategy: StrategySpec, replicas: int) -> tuple[Step, ...]:
    """Returns the steps for `replicas` replicas; raises UsageError when one would serve nobody."""
    rolling = strategy.rolling or RollingSpec()
    batch = min(rolling.batch, replicas)
    lacking = max(0, batch - rolling.surge)
    if lacking >= replicas:
        raise UsageError(
            f"{replicas} replicas can't be replaced {batch} at a time with {rolling.surge} to "
            "spare: nothing would serve meanwhile",
            hint="give 'rolling' a smaller 'batch', or a 'surge' as large as it",
        )
    found: list[Step] = []
    for done in range(0, replicas, batch):
        after = min(done + batch, replicas)
        if after - done > rolling.surge:
            found.append(_room(done, replicas - after + rolling.surge))
        found.append(_filled(strategy, after, replicas))
    return tuple(found)


def limit(strategy: StrategySpec, replicas: int) -> int:
    """Returns how many replicas of both versions may exist at once."""
    return replicas + (strategy.rolling or RollingSpec()).surge


def _room(mine: int, theirs: int) -> Step:
    """Traffic goes by what stays ready; then the baseline shrinks to `theirs`."""
    weight = round(WHOLE * mine / (mine + theirs))
    return Step(weight=weight, need="seen", replicas=mine, baseline_replicas=theirs)


def _filled(strategy: StrategySpec, mine: int, whole: int) -> Step:
    alone = mine == whole
    return Step(
        weight=round(WHOLE * mine / whole),
        bake_s=strategy.bake,
        min_requests=strategy.min_requests,
        need="seen" if alone else strategy.until or "sane",
        replicas=mine,
        baseline_replicas=whole - mine,
    )
