"""A plan: what a release will do and cost. Its digest names exactly that. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from lockgate.analysis.checks import Check, JudgeRules
from lockgate.core.codec import to_json
from lockgate.core.digests import Digest, digest_of_value
from lockgate.core.events import VersionId
from lockgate.core.traffic import WHOLE

StrategyName = Literal["canary", "blue-green", "direct"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One weight and the wait at it.

    `weight` is the candidate's share in hundredths of a percent; times are in seconds. `approval`:
    a person must allow the release to enter this step.
    """

    weight: int
    bake_s: float = 0.0
    min_requests: int = 0
    approval: bool = False

    @property
    def percent(self) -> str:
        """The share for people: `10%`, `0.5%`."""
        return f"{self.weight / (WHOLE / 100):g}%"


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """How the versions of a route are run: replicas, runtime, limits. Times in seconds."""

    replicas: int = 1
    runtime: str | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    memory_mb: int | None = None
    start_timeout_s: float = 120.0
    drain_s: float = 60.0
    sticky_header: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything a release will do, decided before it starts. Times in seconds, sizes in bytes.

    `give_up_s`: a step that still can't be judged this long after its bake goes back.
    `keep_previous_s`: how long the old version stays ready after promotion.
    """

    model: str
    target: str
    route: str
    candidate: VersionId
    baseline: VersionId | None
    strategy: StrategyName
    steps: tuple[Step, ...]
    serving: Serving
    checks: tuple[Check, ...] = ()
    alpha: float = 0.01
    bucket_s: float = 10.0
    on_fail: Literal["rollback", "hold"] = "rollback"
    give_up_s: float = 86_400.0
    keep_previous_s: float = 600.0
    alias: str | None = None
    bytes_to_move: int = 0
    intent: Literal["release", "rollback"] = "release"

    @property
    def digest(self) -> Digest:
        """The identity of the plan: of all its values, of candidate and baseline by digest."""
        return digest_of_value(to_json(self))

    @property
    def earliest_s(self) -> float:
        """The sum of the bakes: it can't end sooner, replica start apart."""
        return sum(step.bake_s for step in self.steps)

    @property
    def changes(self) -> bool:
        """False when the candidate already serves."""
        return self.baseline is None or self.baseline.digest != self.candidate.digest

    def rules(self, step: int) -> JudgeRules:
        """Returns how the judge works at that step."""
        return JudgeRules(
            checks=self.checks,
            alpha=self.alpha,
            min_requests=self.steps[step].min_requests,
            bucket_s=self.bucket_s,
        )

    def weights(self, step: int) -> dict[str, int]:
        """Returns the split of that step: digest → weight."""
        weight = self.steps[step].weight
        split = {}
        if self.baseline is not None and weight < WHOLE:
            split[self.baseline.digest] = WHOLE - weight
        split[self.candidate.digest] = weight
        return split
