"""A study: which parameters to try next, by optuna; replayed from what is recorded.

The same records give the same next trial: samplers are seeded, trials are asked for in rounds of
`workers`, and told in the order of their numbers.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal

from lockgate.core.errors import UsageError
from lockgate.derive.search.spec import SearchSpec

State = Literal["done", "pruned", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One finished trial.

    `values` are the goals', in their order; `reports` (point, value) what pruning looked at;
    `digest` names its version.
    """

    number: int
    parameters: Mapping[str, Any]
    state: State
    values: tuple[float, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    reports: tuple[tuple[float, ...], ...] = ()
    digest: str = ""
    version: int = 0
    seconds: float = 0.0
    reason: str = ""


class Asked:
    """A trial under way: its number and parameters; may be told how it is doing."""

    def __init__(self, trial: Any, *, prunes: bool) -> None:
        self.number: int = trial.number
        self.parameters: dict[str, Any] = dict(trial.params)
        self.trial = trial
        self._prunes = prunes
        self.reports: list[tuple[float, ...]] = []

    def report(self, value: float) -> bool:
        """Takes the next value of the metric that pruning looks at; True: end it."""
        point = len(self.reports)
        self.reports.append((float(point), value))
        if not self._prunes:
            return False
        self.trial.report(value, point)
        return bool(self.trial.should_prune())


class Study:
    """Raises UsageError without optuna."""

    def __init__(self, spec: SearchSpec, seed: int) -> None:
        try:
            import optuna
        except ImportError as error:
            raise UsageError(
                "a search needs optuna", hint="pip install lockgate[derive]"
            ) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna = optuna
        self._spec = spec
        self._space = spec.distributions()
        self._study = optuna.create_study(
            directions=list(spec.goal.values()), sampler=self._sampler(seed),
            pruner=self._pruner(),
        )  # fmt: skip
        if spec.method == "grid":
            self._enqueue_grid(seed)

    def _enqueue_grid(self, seed: int) -> None:
        """Has every point of a grid tried once, in a seeded order."""
        kinds = {name: kind.choices for name, kind in self._space.items()}
        points = list(product(*kinds.values()))
        random.Random(seed).shuffle(points)  # noqa: S311 - an order, no secret
        for point in points[: self._spec.trials]:
            self._study.enqueue_trial(dict(zip(kinds, point, strict=True)))

    def _sampler(self, seed: int) -> Any:
        samplers = self._optuna.samplers
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of options that optuna calls experimental
            match self._spec.method:
                case "random" | "grid":
                    return samplers.RandomSampler(seed=seed)
                case "gp":
                    return samplers.GPSampler(seed=seed, deterministic_objective=True)
                case "nsga2":
                    return samplers.NSGAIISampler(seed=seed)
            return samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)

    def _pruner(self) -> Any:
        prune = self._spec.prune
        if prune is None:
            return self._optuna.pruners.NopPruner()
        return self._optuna.pruners.MedianPruner(
            n_startup_trials=prune.after_trials, n_warmup_steps=prune.after_reports
        )

    @property
    def whole(self) -> int:
        """How many trials there are to be: of a grid, no more than it has points."""
        if self._spec.method != "grid":
            return self._spec.trials
        points = 1
        for kind in self._space.values():
            points *= len(kind.choices)
        return min(points, self._spec.trials)

    def ask(self, count: int) -> list[Asked]:
        """Returns the next `count` trials."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [
                Asked(self._study.ask(self._space), prunes=self._spec.prune is not None)
                for _ in range(count)
            ]

    def tell(self, asked: Asked, trial: Trial) -> None:
        """Takes what became of a trial."""
        states = self._optuna.trial.TrialState
        if trial.state == "done":
            self._study.tell(asked.trial, list(trial.values))
        else:
            state = states.PRUNED if trial.state == "pruned" else states.FAIL
            self._study.tell(asked.trial, state=state)

    def replay(self, asked: Asked, trial: Trial) -> bool:
        """Tells a recorded trial; False when it is not the one that would be asked for now."""
        if dict(trial.parameters) != asked.parameters:
            return False
        for point, value in trial.reports:
            if self._spec.prune is not None:
                asked.trial.report(value, int(point))
        self.tell(asked, trial)
        return True


def best(trials: Sequence[Trial], spec: SearchSpec) -> tuple[Trial, ...]:
    """Returns the trials that no other one beats, the best in the first goal first."""
    signs = [1.0 if way == "minimize" else -1.0 for way in spec.goal.values()]
    done = [t for t in trials if t.state == "done"]
    costs = {t.number: tuple(s * v for s, v in zip(signs, t.values, strict=True)) for t in done}
    front = [
        t for t in done if not any(_beats(other, costs[t.number]) for other in costs.values())
    ]  # fmt: skip
    return tuple(sorted(front, key=lambda t: (costs[t.number], t.number)))


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Says whether `one` costs no more anywhere and less somewhere."""
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))
