"""Runs a step and publishes what it made; whatever was made before is found by its recipe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lockgate.core.digests import Digest, hex_of
from lockgate.core.errors import (
    LockgateError,
    PortError,
    StepFailedError,
    UsageError,
)
from lockgate.core.events import Edge, VersionDerived
from lockgate.derive.api import LooksOutside, Outside, Step
from lockgate.derive.child import RESULT
from lockgate.derive.find import check_parameters, find_step
from lockgate.derive.recipe import Given, Recipe, make_recipe
from lockgate.derive.work import Ran, Workplace
from lockgate.host import trees
from lockgate.host.jobs.api import Limits
from lockgate.registry.environment import build_environment, key_packages
from lockgate.registry.publish import Shelf, publish
from lockgate.registry.service import Details, Published
from lockgate.store.api import Objects

THREADS = 2


class Versions(Protocol):
    """What a run needs to know of versions, and to say of them: a server's, or a registry's."""

    def find(self, model: str, version: str) -> Given:
        """Returns a version by number, alias or digest; raises NotFoundError."""
        ...

    def derived(self, recipe_digest: str) -> Given | None:
        """Returns the version that a recipe is known to give."""
        ...

    def record_derived(self, event: VersionDerived) -> None:
        """Keeps which step made a version."""
        ...

    def metrics_of(self, recipe_digest: str) -> Mapping[str, float]:
        """Returns the numbers that were recorded with a recipe; raises NotFoundError."""
        ...

    def recipe_of(self, model: str, version: str) -> Mapping[str, Any]:
        """Returns the recipe of a version; raises NotFoundError when no step made it."""
        ...

    def took(self, step: str, model: str) -> Took | None:
        """Returns what `step` took when it last made a version of `model`, None when it never."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Took:
    """What a run of a step took: wall clock in seconds, memory at its peak in bytes."""

    seconds: float
    peak_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One step to run: its recipe, the model that the version is for, and what it may take.

    `outside`: what it looks at beside its inputs.
    """

    step: Step
    recipe: Recipe
    parameters: Mapping[str, Any]
    to: str
    limits: Limits = field(default_factory=Limits)
    labels: Mapping[str, str] = field(default_factory=dict)
    outside: Outside = field(default_factory=Outside)

    def known(self, versions: Versions) -> Given | None:
        """Returns the version that this task is known to give; None too when it is not pinned."""
        return versions.derived(self.recipe.digest) if self.outside.pinned else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """The version of a task. `reused`: it was known, nothing was run."""

    version: Given
    reused: bool
    recipe: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    peak_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A server's side of a run: versions to find and record, where they become true, who asks."""

    versions: Versions
    shelf: Shelf
    objects: Objects
    actor: str


def make_task(
    name: str,
    inputs: Mapping[str, Sequence[Given]],
    parameters: Mapping[str, Any],
    *,
    to: str,
    seed: int = 0,
    threads: int = THREADS,
    limits: Limits | None = None,
    labels: Mapping[str, str] | None = None,
    where: tuple[str, ...] = ("with",),
) -> Task:
    """Returns the task of running the step `name`.

    Raises NotFoundError, UsageError or SpecError, before anything is done, for what can't be run.
    """
    step = find_step(name)
    given = check_parameters(step, parameters, where)
    taken = tuple(_taken(step, inputs))
    asked = {**given}
    if isinstance(given.get("script"), str):
        asked["script"] = str(Path(given["script"]).resolve())
        if not Path(asked["script"]).is_file():
            raise UsageError(
                f"there is no file {asked['script']}", hint="a script is named as seen from here"
            )
        given["script"] = Path(given["script"]).name  # its content is part of the code's digest
    recipe = make_recipe(step, given, taken, script=asked.get("script"), seed=seed, threads=threads)
    return Task(
        step=step, recipe=recipe, parameters=asked, to=to, limits=limits or Limits(),
        labels=labels or {}, outside=_outside(step, given),
    )  # fmt: skip


def _outside(step: Step, parameters: Mapping[str, Any]) -> Outside:
    if not isinstance(step, LooksOutside):
        return Outside()
    return step.outside(step.parameters.model_validate(parameters))


def _taken(step: Step, inputs: Mapping[str, Sequence[Given]]) -> Iterable[Given]:
    """Yields the inputs in the step's order; raises UsageError for what is missing or too much."""
    known = {wanted.name: wanted for wanted in step.inputs}
    for name in inputs:
        if name not in known:
            raise UsageError(
                f"{step.name} takes no input {name!r}", hint=f"it takes: {', '.join(known)}"
            )
    for wanted in step.inputs:
        found = inputs.get(wanted.name, ())
        if wanted.required and not found:
            raise UsageError(f"{step.name} needs an input {wanted.name!r}")
        if len(found) > 1 and not wanted.many:
            raise UsageError(f"{step.name} takes one version as {wanted.name!r}")
        yield from (
            Given(name=wanted.name, model=g.model, number=g.number, digest=g.digest) for g in found
        )


def derive(task: Task, site: Site, place: Workplace) -> Made:
    """Returns the version that `task` makes; runs its step only if nobody has.

    A step that looks at something outside which may have changed since is run each time. May be
    killed at any moment and called again. Raises what the step raises, StepFailedError when it was
    stopped, ConflictError while the same recipe is being run.
    """
    known, name = _known(task, site), hex_of(task.recipe.digest)[:32]
    if known is not None and not (place.folder / name).exists():
        return known
    with place.claim(name) as folder:
        known = _known(task, site)  # somebody may have been faster, or was killed while tidying up
        if known is None:
            ran = place.run(task.recipe, task.parameters, folder, task.limits, task.outside)
            known = _publish(task, ran, site, place)
        (folder / RESULT).unlink(missing_ok=True)
        trees.remove(folder)
        return known


def _known(task: Task, site: Site) -> Made | None:
    found = task.known(site.versions)
    if found is None:
        return None
    if found.model != task.to:  # the same bytes, under another name
        text = bytes(site.objects.get(Digest(found.digest)))
        details = Details(lineage=edges(task), labels=task.labels)
        done = site.shelf.commit(task.to, text, details, actor=site.actor)
        found = _given(done, task.to)
    return Made(version=found, reused=True, recipe=task.recipe.digest)


def edges(task: Task) -> tuple[Edge, ...]:
    """Returns the lineage of what `task` makes."""
    relations = {wanted.name: wanted.relation for wanted in task.step.inputs}
    return tuple(
        Edge(relation=relations[given.name], model=given.model, digest=given.digest)
        for given in task.recipe.inputs
    )


def _publish(task: Task, ran: Ran, site: Site, place: Workplace) -> Made:
    details = Details(
        environment=build_environment(), dependencies=key_packages(), labels=task.labels,
        lineage=edges(task),
    )  # fmt: skip
    try:
        done = publish(
            ran.out, task.to, objects=site.objects, shelf=site.shelf, details=details,
            actor=site.actor, report=place.report,
        )  # fmt: skip
    except PortError:
        raise
    except LockgateError as error:
        (ran.out.parent / RESULT).unlink(missing_ok=True)
        raise StepFailedError(
            f"what {task.step.name} made is no version: {error.message}", hint=error.hint
        ) from error
    version = _given(done, task.to)
    event = VersionDerived(
        model=task.to,
        number=version.number,
        digest=version.digest,
        recipe_digest=task.recipe.digest,
        recipe=task.recipe.body(),
        lineage=edges(task),
        metrics=ran.metrics,
        seconds=round(ran.seconds, 3),
        peak_bytes=ran.peak_bytes,
        log=ran.log,
    )
    site.versions.record_derived(event)
    return Made(
        version=version, reused=False, recipe=task.recipe.digest, metrics=ran.metrics,
        seconds=ran.seconds, peak_bytes=ran.peak_bytes,
    )  # fmt: skip


def _given(done: Published, model: str) -> Given:
    return Given(name="", model=model, number=done.version.number, digest=done.version.digest)
