"""A plan: what a release will do and cost. Its digest names exactly that. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from lockgate.analysis.checks import Check, JudgeRules
from lockgate.core.codec import to_json
from lockgate.core.digests import Digest, digest_of_value
from lockgate.core.events import VersionId
from lockgate.core.traffic import WHOLE, twin_of

StrategyName = Literal["canary", "blue-green", "rolling", "in-place", "ab", "shadow", "direct"]
Need = Literal["safe", "sane", "seen"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One weight and the wait at it.

    `weight` is the candidate's share in hundredths of a percent; times are in seconds. `need` is
    what the judge must have said to leave it: `safe` (proof against every margin), `sane` (against
    disasters), `seen` (requests alone). `max_s`: it goes back when that is not said so long after
    the bake (None: the plan's `give_up_s`). `approval`: people must allow the release to enter it.
    `replicas` of the candidate run at it, `baseline_replicas` once traffic has moved (None: all).
    `mirror`: the share of requests that the candidate gets copies of.
    """

    weight: int
    bake_s: float = 0.0
    min_requests: int = 0
    approval: bool = False
    need: Need = "safe"
    max_s: float | None = None
    replicas: int | None = None
    baseline_replicas: int | None = None
    mirror: int = 0

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

    `give_up_s`: a step that still can't be judged this long after its bake goes back, or is held
    (`on_deadline`). `keep_previous_s`: how long the old version stays ready after promotion.
    `limit`: replicas of both versions that may exist at once (None: no limit). It goes forward only
    in `windows` and after `not_before` (seconds since the epoch). `approvers` different people
    must allow a step that needs it, each not longer ago than `approval_expires_s`. `variant`: a
    header and a value; who sends it gets the candidate. `twin`: fresh replicas of the baseline get
    the candidate's share, and are compared with it, not those that serve. `slo`: the share of the
    candidate's requests that shall not fail. Copies of `score_share` of 10,000 requests are
    answered by both versions, and the answers scored by `scorers` (name → definition). `gates` must
    have let the candidate pass for this target.
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
    beta: float = 0.05
    bucket_s: float = 10.0
    adjust: tuple[str, ...] = ()
    slo: float | None = None
    on_fail: Literal["rollback", "hold"] = "rollback"
    on_deadline: Literal["rollback", "hold"] = "rollback"
    windows: tuple[str, ...] = ()
    not_before: float | None = None
    approvers: int = 1
    approval_expires_s: float = 86_400.0
    limit: int | None = None
    variant: tuple[str, ...] = ()
    twin: bool = False
    scorers: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    score_share: int = 0
    give_up_s: float = 86_400.0
    keep_previous_s: float = 600.0
    alias: str | None = None
    bytes_to_move: int = 0
    intent: Literal["release", "rollback"] = "release"
    gates: tuple[str, ...] = ()

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

    @property
    def rules(self) -> JudgeRules:
        """Returns how the judge works, over all steps."""
        return JudgeRules(
            checks=self.checks,
            alpha=self.alpha,
            beta=self.beta,
            bucket_s=self.bucket_s,
            adjust=self.adjust,
            slo=self.slo,
        )

    def weights(self, step: int) -> dict[str, int]:
        """Returns the split of that step: digest → weight."""
        weight = self.steps[step].weight
        split = {}
        rest = WHOLE - weight
        if self.twin_at(step) and self.baseline is not None:
            split[twin_of(self.baseline.digest)] = weight
            rest -= weight
        if self.baseline is not None and rest:
            split[self.baseline.digest] = rest
        if weight:
            split[self.candidate.digest] = weight
        return split

    def twin_at(self, step: int) -> bool:
        """Says whether the baseline's twin serves at that step: up to a half."""
        return self.twin and 0 < self.steps[step].weight <= WHOLE // 2

    @property
    def rival(self) -> str | None:
        """The version that the candidate is compared with; None for none."""
        if self.baseline is None:
            return None
        return twin_of(self.baseline.digest) if self.twin else self.baseline.digest

    def compared(self, step: int) -> frozenset[str]:
        """Returns the versions that both run at that step, so that they can be compared."""
        mine, theirs = self.replicas(step)
        both = self.baseline is not None and mine > 0 and theirs > 0
        return frozenset({self.candidate.digest}) if both else frozenset()

    def replicas(self, step: int) -> tuple[int, int]:
        """Returns how many replicas of candidate and baseline that step ends with."""
        found, whole = self.steps[step], self.serving.replicas
        mine = whole if found.replicas is None else found.replicas
        return mine, whole if found.baseline_replicas is None else found.baseline_replicas
