"""The shape of a release spec: what it may say, and what goes together."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from lockgate.analysis.checks import Check, find_signal
from lockgate.core import canonical
from lockgate.core.document import ours
from lockgate.core.errors import UsageError
from lockgate.core.names import check_alias, check_model, check_target, parse_version
from lockgate.core.units import parse_duration, parse_ratio
from lockgate.observe.scoring.make import make_scorer
from lockgate.release.windows import parse_window

_MAX_DEPTH = 16
_MAX_INT = 2**53


def _bounded(value: Any, depth: int = 0) -> Any:
    """Returns `value` when the ledger can keep it: plain, shallow, and no number without end."""
    if depth > _MAX_DEPTH:
        raise UsageError(f"it is nested deeper than {_MAX_DEPTH}")
    if isinstance(value, Mapping):
        for key, item in value.items():
            _bounded(str(key), depth + 1)
            _bounded(item, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            _bounded(item, depth + 1)
    elif isinstance(value, int) and not -_MAX_INT <= value <= _MAX_INT:
        raise UsageError("it holds a number that is too large")
    if depth == 0:
        canonical.encode(value)  # NaN, dates, lone surrogates: the ledger has no form for them
    return value


Duration = Annotated[float, BeforeValidator(ours(parse_duration))]
Ratio = Annotated[float, BeforeValidator(ours(parse_ratio))]
HEADER = r"^[a-z][a-z0-9-]{0,63}$"
Percent = Annotated[float, Field(gt=0, le=100)]
Text = Annotated[str, Field(min_length=1, max_length=4000)]


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise UsageError(f"{value!r} is not a number above zero")
    return float(value)


def _moment(value: Any) -> float | None:
    """Reads a moment: seconds since the epoch, or ISO 8601 with its offset."""
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise UsageError("a moment is written as 2026-11-23T08:00:00+01:00, with its offset")
    return value.timestamp()


_LATEST = 4_102_444_800.0  # the year 2100


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Until = Literal["safe", "sane", "seen"]


class StepSpec(_Strict):
    """One step of a canary: its share, and what it takes to leave it."""

    share: Percent
    until: Until | None = None
    bake: Duration | None = None
    max: Duration | None = None
    min_requests: Annotated[int, Field(ge=0, le=10_000_000)] | None = None


class RollingSpec(_Strict):
    """Replicas replaced batch by batch; `surge` more than there are may run meanwhile."""

    batch: Annotated[int, Field(ge=1, le=1000, strict=True)] = 1
    surge: Annotated[int, Field(ge=0, le=1000, strict=True)] = 1


class AbSpec(_Strict):
    """A fixed share for a fixed time; who sends `header: value` gets the candidate anyway."""

    share: Percent = 50.0
    last: Duration = 86_400.0
    header: Annotated[str, Field(pattern=HEADER)] | None = None
    value: Annotated[str, Field(min_length=1, max_length=200)] | None = None

    @model_validator(mode="after")
    def _both(self) -> AbSpec:
        if (self.header is None) != (self.value is None):
            raise ValueError("'header' and 'value' go together")
        if self.share >= 100:
            raise ValueError("an A/B test keeps some traffic on the version that serves")
        return self


class ShadowSpec(_Strict):
    """Copies of a share of the requests, whose answers nobody waits for; then a canary."""

    share: Percent = 10.0
    last: Duration = 600.0
    min_requests: Annotated[int, Field(ge=0, le=10_000_000)] = 500


def _steps(value: Any) -> Any:
    """Lets a step be a bare percentage."""
    if not isinstance(value, list | tuple):
        return value
    return [{"share": step} if isinstance(step, int | float) else step for step in value]


class StrategySpec(_Strict):
    """How traffic moves: exactly one kind, and what holds for every step."""

    canary: Annotated[tuple[StepSpec, ...] | None, BeforeValidator(_steps)] = Field(
        default=None, min_length=1, max_length=50
    )
    blue_green: Literal[True] | None = Field(default=None, alias="blue-green")
    rolling: RollingSpec | None = None
    ab: AbSpec | None = None
    shadow: ShadowSpec | None = None
    bake: Duration = 600.0
    min_requests: Annotated[int, Field(ge=0, le=10_000_000)] = 500
    give_up_after: Duration = 86_400.0
    until: Until | None = None
    compare: Literal["production", "twin"] = "production"

    @property
    def kind(self) -> str:
        """The name of the strategy."""
        names = {"canary": self.canary, "blue-green": self.blue_green, "rolling": self.rolling,
                 "ab": self.ab, "shadow": self.shadow}  # fmt: skip
        given = [name for name, value in names.items() if value is not None]
        return "shadow" if "shadow" in given else given[0]

    @model_validator(mode="after")
    def _one_kind(self) -> StrategySpec:
        kinds = (self.canary, self.blue_green, self.rolling, self.ab)
        given = sum(kind is not None for kind in kinds)
        if given > 1 or (given == 0 and self.shadow is None):
            raise ValueError(
                "name exactly one of 'canary', 'blue-green', 'rolling', 'ab' and 'shadow'"
            )
        if self.shadow is not None and given and self.canary is None:
            raise ValueError("a shadow goes on as a canary: give 'canary' beside it, or nothing")
        steps = [step.share for step in self.canary or ()]
        if steps and (steps != sorted(set(steps)) or steps[-1] != 100):
            raise ValueError("the steps of a canary grow and end with 100")
        if any(step < 0.01 for step in steps):
            raise ValueError("the smallest step is 0.01 percent")
        if self.compare == "twin":
            if self.canary is None or self.shadow is not None:
                raise ValueError("'compare: twin' goes with 'canary'")
            if any(50 < step < 100 for step in steps):
                raise ValueError("a twin gets the candidate's share: steps are up to 50, or 100")
        return self


class CheckSpec(_Strict):
    """One rule over a signal: relative to the baseline, or absolute."""

    signal: Annotated[str, AfterValidator(ours(lambda name: find_signal(name).name))]
    worse_by_at_most: Annotated[Ratio | None, Field(le=100)] = None
    at_most: float | None = None
    at_least: Annotated[float, Field(gt=0)] | None = None
    floor: float | None = None
    tolerate: Ratio | None = None
    dry_run: bool = False

    @field_validator("at_most", "floor", mode="before")
    @classmethod
    def _in_the_signals_unit(cls, value: Any, info: ValidationInfo) -> Any:
        """Reads a share for rates, a duration for times, a number for throughput."""
        name = info.data.get("signal")
        if value is None or name is None:
            return value
        signal = find_signal(name)
        if signal.event or signal.measure == "score":
            return ours(parse_ratio)(value)
        reader = _number if signal.measure in ("throughput", "tokens") else parse_duration
        return ours(reader)(value)

    @model_validator(mode="after")
    def _one_rule(self) -> CheckSpec:
        absolute = "at_least" if find_signal(self.signal).worse == "down" else "at_most"
        given = [
            r for r in ("worse_by_at_most", "at_most", "at_least") if getattr(self, r) is not None
        ]
        if len(given) != 1 or given[0] not in ("worse_by_at_most", absolute):
            raise ValueError(f"{self.signal} needs exactly one of 'worse_by_at_most', '{absolute}'")
        if self.floor is not None and given[0] != "worse_by_at_most":
            raise ValueError("'floor' goes with 'worse_by_at_most'")
        if self.tolerate is not None:
            if self.worse_by_at_most is None:
                raise ValueError("'tolerate' goes with 'worse_by_at_most'")
            if self.tolerate > self.worse_by_at_most:
                raise ValueError("'tolerate' is at most 'worse_by_at_most'")
        return self

    def check(self) -> Check:
        """Returns it as the judge's value."""
        absolute = self.at_most if self.at_most is not None else self.at_least
        return Check(
            signal=self.signal,
            worse_by_at_most=self.worse_by_at_most,
            at_most=absolute,
            floor=self.floor,
            tolerate=self.tolerate,
            dry_run=self.dry_run,
        )


class ScorerSpec(_Strict):
    """A scorer by its kind and options; which go together is said by `make_scorer`."""

    kind: Literal["exact", "regex", "json", "known", "similar", "grader"]
    invert: bool = False
    expected: Text | None = None
    pattern: Text | None = None
    json_schema: Annotated[Mapping[str, Any] | None, AfterValidator(ours(_bounded))] = Field(
        default=None, alias="schema"
    )
    answers: Annotated[Mapping[str, str] | None, Field(min_length=1, max_length=10_000)] = None
    compare: Literal["equal", "contains", "number"] | None = None
    folder: Text | None = None
    url: Text | None = None
    model: Text | None = None
    prompt: Text | None = None
    key_env: Annotated[str | None, Field(pattern=r"^LOCKGATE_[A-Z0-9_]{1,55}$")] = None

    @model_validator(mode="after")
    def _can_be_made(self) -> ScorerSpec:
        ours(make_scorer)(self.definition)
        return self

    @property
    def definition(self) -> dict[str, Any]:
        """What was said, and nothing else."""
        return self.model_dump(exclude_none=True, exclude_defaults=True, by_alias=True)


class ApproveSpec(_Strict):
    """Which steps people must allow, how many of them, and how long their word holds."""

    before: tuple[Percent, ...] = Field(min_length=1)
    count: Annotated[int, Field(ge=1, le=20, strict=True)] = 1
    expires: Duration = 86_400.0


class RuntimeSpec(_Strict):
    """Which runtime, and what it is told."""

    name: Text | None = None
    options: Annotated[Mapping[str, Any], AfterValidator(ours(_bounded))] = Field(
        default_factory=dict
    )
    memory_mb: Annotated[int, Field(gt=0)] | None = None
    start_timeout: Duration | None = None
    drain: Duration | None = None


class ReleaseSpec(_Strict):
    """A release as a person asks for it."""

    model: Annotated[str, AfterValidator(ours(check_model))]
    version: Annotated[str, AfterValidator(ours(lambda text: parse_version(text) and text))]
    to: Annotated[str, AfterValidator(ours(check_target))] = "local"
    strategy: StrategySpec
    checks: tuple[CheckSpec, ...] = Field(default=(), max_length=50)
    alpha: Annotated[float, Field(ge=1e-6, le=0.2)] = 0.01
    beta: Annotated[float, Field(ge=1e-6, le=0.5)] = 0.05
    bucket: Annotated[Duration, Field(ge=0.1, le=86_400)] = 10.0
    adjust: tuple[Literal["request_bytes"], ...] = ()
    slo: Annotated[Ratio | None, Field(ge=0.5, lt=1)] = None
    on_fail: Literal["rollback", "hold"] = "rollback"
    on_deadline: Literal["rollback", "hold"] = "rollback"
    windows: tuple[Annotated[str, AfterValidator(ours(lambda t: parse_window(t) and t))], ...] = (
        Field(default=(), max_length=20)
    )
    not_before: Annotated[float | None, Field(ge=0, le=_LATEST), BeforeValidator(ours(_moment))] = (
        None
    )
    approve: ApproveSpec | None = None
    scorers: Annotated[
        Mapping[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")], ScorerSpec],
        Field(max_length=10),
    ] = Field(default_factory=dict)
    score: Annotated[Ratio, Field(gt=0, le=1)] = 0.1
    gates: tuple[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")], ...] = Field(
        default=(), max_length=50
    )
    replicas: Annotated[int, Field(ge=1, le=1000, strict=True)] | None = None
    runtime: RuntimeSpec = RuntimeSpec()
    sticky: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,63}$")] | None = None
    keep_previous: Duration = 600.0
    alias: Annotated[str, AfterValidator(ours(check_alias))] | None = None

    @model_validator(mode="after")
    def _fits(self) -> ReleaseSpec:
        keys = {find_signal(check.signal).key for check in self.checks} - {""}
        if unknown_keys := sorted(keys - self.scorers.keys()):
            raise ValueError(
                f"there is no signal and no scorer called {unknown_keys[0]!r}: name it in 'scorers'"
            )
        if self.strategy.compare == "twin" and self.sticky:
            raise ValueError("a twin is compared by requests: not with 'sticky'")
        alone = self.strategy.blue_green
        if alone and any(c.worse_by_at_most is not None for c in self.checks):
            raise ValueError(
                "blue-green has no baseline at the same time to compare with: "
                "use 'at_most' checks, or a canary"
            )
        if self.approve:
            steps = [step.share for step in self.strategy.canary or ()] or [100.0]
            unknown = [step for step in self.approve.before if step not in steps]
            if unknown:
                raise ValueError(f"'approve: before' names {unknown[0]:g}, which is not a step")
        return self
