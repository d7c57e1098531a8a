"""What to search over, for what, and how."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

Method = Literal["grid", "random", "tpe", "gp", "nsga2"]
Direction = Literal["minimize", "maximize"]
Plain = str | int | float | bool


class Range(BaseModel):
    """Numbers from `low` to `high`, both included; whole ones when both are."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    low: float | int
    high: float | int
    log: bool = Field(default=False, description="by magnitude")

    @model_validator(mode="after")
    def _fits(self) -> Range:
        if not self.low < self.high:
            raise ValueError("'low' is below 'high'")
        if not math.isfinite(self.high - self.low):
            raise ValueError("'high' - 'low' is more than a float64 holds")
        if self.log and self.low <= 0:
            raise ValueError("'log' goes with numbers above zero")
        return self

    @property
    def whole(self) -> bool:
        """Says whether these are whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)


Choices = Annotated[tuple[Plain, ...], Field(min_length=1, max_length=1000)]


def _kind(value: Any) -> str:
    return "range" if isinstance(value, dict | Range) else "list"


Space = Annotated[
    Annotated[Range, Tag("range")] | Annotated[Choices, Tag("list")], Discriminator(_kind)
]


class PruneSpec(BaseModel):
    """When to end a trial early: its metric is worse than most others' at the same point."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    metric: str = Field(description="one that the step reports while it runs")
    after_trials: Annotated[int, Field(ge=1)] = 4
    after_reports: Annotated[int, Field(ge=0)] = 1


class SearchSpec(BaseModel):
    """A search.

    With one goal the best trial wins; with several, the first goal picks among those that no other
    trial beats in everything.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    over: dict[str, Space] = Field(min_length=1, max_length=50)
    goal: dict[str, Direction] = Field(min_length=1, max_length=5)
    method: Method = "tpe"
    trials: Annotated[int, Field(ge=1, le=10_000)] = 20
    workers: Annotated[int, Field(ge=1, le=64)] = Field(
        default=1, description="trials at the same time; part of what decides their order"
    )
    prune: PruneSpec | None = None

    @model_validator(mode="after")
    def _fits(self) -> SearchSpec:
        if self.method == "grid" and any(isinstance(v, Range) for v in self.over.values()):
            raise ValueError("a grid is over lists of values, not over ranges")
        if len(self.goal) > 1 and self.method not in ("random", "tpe", "nsga2", "grid"):
            raise ValueError(f"{self.method} searches for one goal")
        if len(self.goal) > 1 and self.prune is not None:
            raise ValueError("trials with several goals are not pruned")
        return self

    def point(self) -> dict[str, Any]:
        """Returns one point of the space: each range's low end, each list's first value."""
        return {n: v.low if isinstance(v, Range) else v[0] for n, v in self.over.items()}

    def distributions(self) -> dict[str, Any]:
        """Returns the space as optuna has it."""
        from optuna import distributions as kinds

        found: dict[str, Any] = {}
        for name, values in sorted(self.over.items()):
            if not isinstance(values, Range):
                found[name] = kinds.CategoricalDistribution(values)
            elif values.whole:
                found[name] = kinds.IntDistribution(
                    int(values.low), int(values.high), log=values.log
                )
            else:
                found[name] = kinds.FloatDistribution(
                    float(values.low), float(values.high), log=values.log
                )
        return found
