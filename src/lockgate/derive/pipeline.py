"""A pipeline: steps and gates, in the order of the file, planned before anything runs.

Every stage is known by its recipe, so running a pipeline again does only what is not done; one
that was killed, or that failed, goes on at the stage where it ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from lockgate.core import document
from lockgate.core.errors import LockgateError, NotFoundError, Problem, SpecError, UsageError
from lockgate.core.names import check_model, check_target, split_reference
from lockgate.core.units import parse_duration, parse_size
from lockgate.derive.recipe import Given
from lockgate.derive.run import THREADS, Made, Site, Task, Took, derive, make_task
from lockgate.derive.search.spec import SearchSpec
from lockgate.derive.search.study import Trial
from lockgate.derive.work import Heard, Workplace
from lockgate.host.jobs.api import Limits

HINT = "docs/derive.md describes pipelines"
_NAME = r"^[a-z][a-z0-9_-]{0,62}$"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Size = Annotated[int, BeforeValidator(document.ours(parse_size))]
Duration = Annotated[float, BeforeValidator(document.ours(parse_duration))]


class LimitSpec(_Strict):
    """What a step may take; 0 is no limit."""

    memory: Size = 0
    disk: Size = Limits().disk_bytes
    timeout: Duration = Limits().seconds
    silent: Duration = Limits().silent_s

    @property
    def limits(self) -> Limits:
        """As a job has them."""
        return Limits(
            memory_bytes=self.memory, disk_bytes=self.disk, seconds=self.timeout,
            silent_s=self.silent,
        )  # fmt: skip


def _list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Refs = Annotated[tuple[str, ...], BeforeValidator(_list), Field(min_length=1, max_length=64)]


class StageSpec(_Strict):
    """One stage: `step` with what it takes and where it goes, or `admit` with gates."""

    step: str | None = None
    from_: dict[str, Refs] = Field(default_factory=dict, alias="from")
    with_: dict[str, Any] = Field(default_factory=dict, alias="with")
    to: str | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    threads: Annotated[int, Field(ge=1, le=256)] = THREADS
    limits: LimitSpec = LimitSpec()
    alias: str | None = None
    search: SearchSpec | None = None
    admit: str | None = None
    gates: list[dict[str, Any]] | str | None = None
    target: str = "local"

    @model_validator(mode="after")
    def _one_kind(self) -> StageSpec:
        if (self.step is None) == (self.admit is None):
            raise ValueError("a stage has either 'step' or 'admit'")
        if self.step is not None and self.to is None:
            raise ValueError("'to' is missing: the model that the version is for")
        if self.admit is not None and self.gates is None:
            raise ValueError("'gates' is missing: what the version has to pass")
        if self.search is not None and self.step is None:
            raise ValueError("'search' goes with 'step'")
        if self.to is not None:
            document.ours(check_model)(self.to)
        document.ours(check_target)(self.target)
        return self


class PipelineSpec(_Strict):
    """The stages by name, in their order."""

    pipeline: Annotated[str, Field(pattern=_NAME)]
    stages: dict[Annotated[str, Field(pattern=_NAME)], StageSpec] = Field(
        min_length=1, max_length=100
    )


def parse_pipeline(text: str) -> PipelineSpec:
    """Reads a pipeline; raises SpecError with every mistake, each with its path and line."""
    return document.parse(text, PipelineSpec, hint=HINT)


Do = Literal["run", "reuse", "judge", "wait"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What will become of a stage.

    `do`: `reuse` a version that is there, `run` the step, `judge` by gates, or `wait`: it depends
    on what an earlier stage makes. `inputs` are as text. `runs`: how often the step runs at most;
    `took`: what one run took when it last made a version of this model.
    """

    name: str
    what: str
    inputs: tuple[str, ...]
    to: str
    do: Do
    version: Given | None = None
    runs: int = 1
    took: Took | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gated:
    """What a gate stage is asked: the version, where it is meant to go, and through which gates."""

    version: Given
    target: str
    gates: Sequence[Mapping[str, Any]] | str


Admit = Callable[[Gated], None]
"""Judges; raises GateRefusedError, RetrainError or HeldError for what does not pass."""


class Pipeline:
    """The stages of one spec at one site. Raises SpecError when the stages do not fit together."""

    def __init__(self, spec: PipelineSpec, site: Site) -> None:
        self._spec = spec
        self._site = site
        problems = list(self._problems())
        if problems:
            raise SpecError(problems, hint=HINT)

    def _problems(self) -> Iterator[Problem]:
        """Yields what is wrong with references and parameters, before anything runs."""
        nobody = Given(name="", model="nobody/nothing", number=0, digest="")
        before: set[str] = set()
        for name, stage in self._spec.stages.items():
            where = f"stages.{name}"
            for ref in _refs(stage):
                problem = self._reference_problem(ref, before)
                if problem:
                    yield Problem(path=where, message=problem)
            if stage.step is not None:
                tried = stage.search.point() if stage.search else {}
                inputs = {key: [nobody] * len(refs) for key, refs in stage.from_.items()}
                try:
                    self._task(name, stage, inputs, tried)
                except SpecError as error:
                    yield from error.problems
                except LockgateError as error:
                    yield Problem(path=where, message=error.message)
            before.add(name)

    def _reference_problem(self, ref: str, before: set[str]) -> str | None:
        if ref in before:
            return None
        if "/" not in ref:
            return f"{ref!r} is no earlier stage and no version (owner/name:v1)"
        try:
            self._find(ref)
        except LockgateError as error:
            return error.message
        return None

    def _find(self, ref: str) -> Given:
        model, version = split_reference(ref)
        if version is None:
            raise UsageError(f"which version of {model}? write it as {model}:v1")
        return self._site.versions.find(model, version)

    def _task(
        self, name: str, stage: StageSpec, inputs: Mapping[str, Sequence[Given]],
        tried: Mapping[str, Any] | None = None,
    ) -> Task:  # fmt: skip
        return make_task(
            stage.step or "", inputs, _with(stage.with_, tried or {}), to=stage.to or "",
            seed=stage.seed, threads=stage.threads, limits=stage.limits.limits,
            labels={"pipeline": self._spec.pipeline, "stage": name},
            where=("stages", name, "with"),
        )  # fmt: skip

    def _inputs(self, stage: StageSpec, made: Mapping[str, Given]) -> dict[str, list[Given]] | None:
        """Returns a stage's inputs; None while one of them is not made yet."""
        found: dict[str, list[Given]] = {}
        for name, refs in stage.from_.items():
            for ref in refs:
                given = made.get(ref) if ref in self._spec.stages else self._find(ref)
                if given is None:
                    return None
                found.setdefault(name, []).append(given)
        return found

    def plan(self) -> list[Planned]:
        """Returns what running the pipeline would do now; changes nothing."""
        made: dict[str, Given] = {}
        return [self._planned(name, stage, made) for name, stage in self._spec.stages.items()]

    def _planned(self, name: str, stage: StageSpec, made: dict[str, Given]) -> Planned:
        inputs = tuple(_refs(stage))
        what, to = (stage.step or "gates"), (stage.to or stage.target)
        if stage.admit is not None:
            ready = stage.admit in made or stage.admit not in self._spec.stages
            do: Do = "judge" if ready else "wait"
            return Planned(name=name, what=what, inputs=inputs, to=to, do=do)
        given = self._inputs(stage, made)
        took = self._site.versions.took(what, to)
        runs = stage.search.trials if stage.search is not None else 1
        shown = f"search over {what}" if stage.search is not None else what
        known = None
        if given is not None and stage.search is None:
            known = self._task(name, stage, given).known(self._site.versions)
        if known is not None:
            made[name] = known
        do = "wait" if given is None else "reuse" if known else "run"
        return Planned(
            name=name, what=shown, inputs=inputs, to=to, do=do, version=known, runs=runs, took=took
        )

    def run(
        self,
        place: Workplace,
        admit: Admit,
        begun: Callable[[str], None] = lambda _: None,
        ended: Callable[[str, Made | None], None] = lambda _, __: None,
    ) -> dict[str, Made]:
        """Runs every stage in order; returns what each step made.

        `begun` and `ended` get each stage's name. Raises what a stage raises; what was made before
        stays, and is found again.
        """
        made: dict[str, Made] = {}
        for name, stage in self._spec.stages.items():
            begun(name)
            versions = {key: value.version for key, value in made.items()}
            if stage.step is not None:
                inputs = self._inputs(stage, versions)
                if inputs is None:
                    raise NotFoundError(f"stage {name} needs what no stage before it made")
                made[name] = self._make(name, stage, inputs, place)
            else:
                admitted = versions.get(stage.admit or "") or self._find(stage.admit or "")
                gates = stage.gates or []
                admit(Gated(version=admitted, target=stage.target, gates=gates))
            ended(name, made.get(name))
        return made

    def _make(
        self, name: str, stage: StageSpec, inputs: Mapping[str, Sequence[Given]],
        place: Workplace,
    ) -> Made:  # fmt: skip
        if stage.search is None:
            return derive(self._task(name, stage, inputs), self._site, place)
        from lockgate.derive.search.run import search

        def told(trial: Trial, whole: int) -> None:
            numbers = ", ".join(f"{key} {value:.5g}" for key, value in trial.metrics.items())
            said = numbers or trial.reason
            line = f"trial {trial.number + 1} of {whole}, {dict(trial.parameters)}: {said}"
            place.hear(Heard(step=name, line=line))

        found = search(
            stage.search, lambda tried: self._task(name, stage, inputs, tried), to=stage.to or "",
            seed=stage.seed, name=f"{self._spec.pipeline}/{name}", site=self._site, place=place,
            told=told,
        )  # fmt: skip
        place.hear(Heard(step=name, line=f"the chart of the trials is {found.chart}"))
        return found.made

    def aliases(self, made: Mapping[str, Made]) -> Iterator[tuple[str, str, Given]]:
        """Yields (model, alias, version) for the stages that ask for an alias."""
        for name, stage in self._spec.stages.items():
            if stage.alias and name in made:
                yield made[name].version.model, stage.alias, made[name].version


def _refs(stage: StageSpec) -> Iterator[str]:
    for refs in stage.from_.values():
        yield from refs
    if stage.admit is not None:
        yield stage.admit


def _with(fixed: Mapping[str, Any], tried: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `fixed` with what is tried; `settings.rate` is `rate` in `settings`."""
    found = dict(fixed)
    for name, value in tried.items():
        head, dot, rest = name.partition(".")
        inner = found.get(head)
        if dot:
            value = _with(inner if isinstance(inner, dict) else {}, {rest: value})  # noqa: PLW2901
        found[head] = value
    return found
