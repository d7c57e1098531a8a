"""The release spec: YAML from a stranger → a checked value; all mistakes at once, with lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from lockgate.analysis.checks import Check, find_signal
from lockgate.core import canonical
from lockgate.core.errors import LockgateError, Problem, SpecError, UsageError
from lockgate.core.names import check_alias, check_model, check_target, parse_version
from lockgate.core.units import parse_duration, parse_ratio

_MAX_BYTES = 1_000_000
_MAX_DEPTH = 16
_MAX_INT = 2**53


def _ours(function: Any) -> Any:
    """Wraps one of our parsers, so that its error is one that pydantic collects."""

    def wrapped(value: Any) -> Any:
        try:
            return function(value)
        except LockgateError as error:
            hint = f" ({error.hint})" if error.hint else ""
            raise ValueError(error.message + hint) from error
        except OverflowError as error:
            raise ValueError("it is too large") from error

    return wrapped


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


Duration = Annotated[float, BeforeValidator(_ours(parse_duration))]
Ratio = Annotated[float, BeforeValidator(_ours(parse_ratio))]
Percent = Annotated[float, Field(gt=0, le=100)]
Text = Annotated[str, Field(min_length=1, max_length=4000)]


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise UsageError(f"{value!r} is not a number above zero")
    return float(value)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class StrategySpec(_Strict):
    """`canary: [1, 10, 100]`, or `blue-green: true`, and the wait at each step."""

    canary: tuple[Percent, ...] | None = Field(default=None, min_length=1, max_length=50)
    blue_green: Literal[True] | None = Field(default=None, alias="blue-green")
    bake: Duration = 600.0
    min_requests: Annotated[int, Field(ge=0, le=10_000_000)] = 500
    give_up_after: Duration = 86_400.0

    @model_validator(mode="after")
    def _one_kind(self) -> StrategySpec:
        if (self.canary is None) == (self.blue_green is None):
            raise ValueError("name exactly one of 'canary' and 'blue-green'")
        steps = self.canary or (100.0,)
        if list(steps) != sorted(set(steps)) or steps[-1] != 100:
            raise ValueError("the steps of a canary grow and end with 100")
        if any(step < 0.01 for step in steps):
            raise ValueError("the smallest step is 0.01 percent")
        return self


class CheckSpec(_Strict):
    """One rule over a signal: relative to the baseline, or absolute."""

    signal: Annotated[str, AfterValidator(_ours(lambda name: find_signal(name).name))]
    worse_by_at_most: Ratio | None = None
    at_most: float | None = None
    at_least: Annotated[float, Field(gt=0)] | None = None
    floor: float | None = None

    @field_validator("at_most", "floor", mode="before")
    @classmethod
    def _in_the_signals_unit(cls, value: Any, info: ValidationInfo) -> Any:
        """Reads a share for rates, a duration for times, a number for throughput."""
        name = info.data.get("signal")
        if value is None or name is None:
            return value
        readers = {"error": parse_ratio, "throughput": _number}
        return _ours(readers.get(find_signal(name).measure, parse_duration))(value)

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
        return self

    def check(self) -> Check:
        """Returns it as the judge's value."""
        absolute = self.at_most if self.at_most is not None else self.at_least
        return Check(
            signal=self.signal,
            worse_by_at_most=self.worse_by_at_most,
            at_most=absolute,
            floor=self.floor,
        )


class ApproveSpec(_Strict):
    """Which steps a person must allow."""

    before: tuple[Percent, ...] = Field(min_length=1)


class RuntimeSpec(_Strict):
    """Which runtime, and what it is told."""

    name: Text | None = None
    options: Annotated[Mapping[str, Any], AfterValidator(_ours(_bounded))] = Field(
        default_factory=dict
    )
    memory_mb: Annotated[int, Field(gt=0)] | None = None
    start_timeout: Duration | None = None
    drain: Duration | None = None


class ReleaseSpec(_Strict):
    """A release as a person asks for it."""

    model: Annotated[str, AfterValidator(_ours(check_model))]
    version: Annotated[str, AfterValidator(_ours(lambda text: parse_version(text) and text))]
    to: Annotated[str, AfterValidator(_ours(check_target))] = "local"
    strategy: StrategySpec
    checks: tuple[CheckSpec, ...] = Field(default=(), max_length=50)
    alpha: Annotated[float, Field(gt=0, le=0.2)] = 0.01
    bucket: Duration = 10.0
    on_fail: Literal["rollback", "hold"] = "rollback"
    approve: ApproveSpec | None = None
    replicas: Annotated[int, Field(ge=1, le=1000, strict=True)] | None = None
    runtime: RuntimeSpec = RuntimeSpec()
    sticky: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,63}$")] | None = None
    keep_previous: Duration = 600.0
    alias: Annotated[str, AfterValidator(_ours(check_alias))] | None = None

    @model_validator(mode="after")
    def _fits(self) -> ReleaseSpec:
        if self.bucket <= 0:
            raise ValueError("'bucket' must be longer than nothing")
        if self.strategy.blue_green and any(c.worse_by_at_most is not None for c in self.checks):
            raise ValueError(
                "blue-green has no baseline at the same time to compare with: "
                "use 'at_most' checks, or a canary"
            )
        if self.approve:
            steps = self.strategy.canary or (100.0,)
            unknown = [step for step in self.approve.before if step not in steps]
            if unknown:
                raise ValueError(f"'approve: before' names {unknown[0]:g}, which is not a step")
        return self


def parse_spec(text: str) -> ReleaseSpec:
    """Reads a spec; raises SpecError with every mistake, each with its path and line."""
    if len(text) > _MAX_BYTES:
        raise _error([Problem(path="spec", message=f"it is longer than {_MAX_BYTES} bytes")])
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        _refuse_tricks(node, set())
        data = yaml.safe_load(text)
    except SpecError:
        raise
    except (yaml.YAMLError, RecursionError, ArithmeticError, LookupError, TypeError, ValueError,
            AttributeError) as error:  # fmt: skip
        mark = getattr(error, "problem_mark", None)
        said = str(getattr(error, "problem", None) or error)
        raise _error(
            [Problem(path="spec", message=f"it is not YAML: {said}", line=mark and mark.line + 1)]
        ) from error
    if not isinstance(data, dict):
        raise _error([Problem(path="spec", message="it is not a mapping of names to values")])
    return _validate(data, node)


def _refuse_tricks(node: yaml.Node | None, seen: set[int]) -> None:
    """Raises SpecError for an alias (`*x`, which can grow without end) or a key that stands twice.

    PyYAML would expand the first, and of the second take the last without a word.
    """
    line = node.start_mark.line + 1 if node else None
    if id(node) in seen:
        raise _error([Problem(path="spec", message="aliases ('*name') can't be used", line=line)])
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_tricks(item, seen)
    if isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, value in node.value:
            where = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise _error([Problem(path="spec", message="a name is a plain text", line=where)])
            if key.value in keys:
                message = f"{key.value!r} stands here twice"
                raise _error([Problem(path=str(key.value), message=message, line=where)])
            keys.add(str(key.value))
            _refuse_tricks(value, seen)


def check_spec(data: Mapping[str, Any]) -> ReleaseSpec:
    """Returns the spec of already parsed values; raises SpecError with every mistake."""
    return _validate(dict(data), None)


def _validate(data: dict[str, Any], node: yaml.Node | None) -> ReleaseSpec:
    try:
        return ReleaseSpec.model_validate(data)
    except (RecursionError, OverflowError) as error:
        message = "it is nested too deep, or holds a number that is too large"
        raise _error([Problem(path="spec", message=message)]) from error
    except ValidationError as error:
        problems = [
            Problem(
                path=".".join(str(part) for part in item["loc"]) or "spec",
                message=_say(item),
                line=_line(node, item["loc"]),
            )
            for item in error.errors()
        ]
        unique = list(dict.fromkeys(problems))
        raise _error(sorted(unique, key=lambda problem: problem.line or 0)) from error


def _say(item: Any) -> str:
    if item["type"] == "extra_forbidden":
        return "there is no such setting"
    if item["type"] == "missing":
        return "it is missing"
    message: str = item["msg"].removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def _line(node: yaml.Node | None, location: Sequence[str | int]) -> int | None:
    """Returns the line of the deepest part of `location` that stands in the text."""
    if node is None:
        return None
    line = node.start_mark.line + 1
    for part in location:
        found = _child(node, part)
        if found is None:
            break
        node, line = found
    return line


def _child(node: yaml.Node, part: str | int) -> tuple[yaml.Node, int] | None:
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part], node.value[part].start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == str(part):
                return value, key.start_mark.line + 1
    return None


def _error(problems: Sequence[Problem]) -> SpecError:
    return SpecError(problems, hint="docs/release-spec.md describes every setting")
