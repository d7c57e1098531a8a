"""Runs a search: rounds of trials, each a task with its own recipe, recorded as it ends."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

from lockgate.core import canonical
from lockgate.core.codec import from_json, to_json
from lockgate.core.digests import digest_of, hex_of
from lockgate.core.errors import (
    IntegrityError,
    LockgateError,
    PortError,
    StepFailedError,
)
from lockgate.derive.recipe import Given
from lockgate.derive.run import Made, Site, Task, derive
from lockgate.derive.search.chart import chart
from lockgate.derive.search.spec import SearchSpec
from lockgate.derive.search.study import Asked, Study, Trial, best
from lockgate.derive.work import Heard, Workplace
from lockgate.store.durable import write_durably

TRIALS = "trials.json"
CHART = "chart.svg"


@dataclass(frozen=True, slots=True, kw_only=True)
class Searched:
    """What a search found: its best trials, the best first, and all of them; where its chart is."""

    front: tuple[Trial, ...]
    trials: tuple[Trial, ...]
    chart: Path
    made: Made


def search(
    spec: SearchSpec, task: Callable[[Mapping[str, Any]], Task], *, to: str, seed: int, name: str,
    site: Site, place: Workplace, told: Callable[[Trial, int], None] = lambda _, __: None,
) -> Searched:  # fmt: skip
    """Runs the trials of `spec`, each the task that `task` makes of its parameters.

    A finished trial is recorded at once; a search that was killed goes on after it, and asks for
    the same trials as it would have. `told` gets each trial and how many there will be. Raises
    StepFailedError when no trial reached its end, with the reason of the last.
    """
    first = task(spec.point())
    for given in first.recipe.inputs:
        place.input(given.digest)  # once, before trials that want it at the same time
    body = {"search": to_json(spec.model_dump(mode="json")), "seed": seed, "name": name, "to": to,
            "base": first.recipe.body()}  # fmt: skip
    with place.claim("search-" + hex_of(digest_of(canonical.encode(body)))[:24]) as folder:
        study = Study(spec, seed)
        records = _Records(folder)
        trials: list[Trial] = []
        while len(trials) < study.whole:
            round_ = study.ask(min(spec.workers, study.whole - len(trials)))
            found = _round(round_, records, study, spec, task, site, place)
            for trial in found:
                told(trial, study.whole)
            trials += found
        (folder / CHART).write_text(chart(trials, spec), "utf-8")
        front = best(trials, spec)
        if not front:
            raise StepFailedError(
                f"none of {len(trials)} trials gave a result: {trials[-1].reason}",
                hint="is the space too wild, or a goal misspelt?",
            )
        won = front[0]
        version = Given(name="", model=to, number=won.version, digest=won.digest)
        recipe = task(won.parameters).recipe.digest
        made = Made(version=version, reused=False, recipe=recipe, metrics=won.metrics,
                    seconds=sum(t.seconds for t in trials))  # fmt: skip
        return Searched(front=front, trials=tuple(trials), chart=folder / CHART, made=made)


def _round(
    asked: list[Asked], records: _Records, study: Study, spec: SearchSpec,
    task: Callable[[Mapping[str, Any]], Task], site: Site, place: Workplace,
) -> list[Trial]:  # fmt: skip
    """Returns the trials of one round, recorded ones as they are, told in their order."""
    known = {one.number: records.find(one) for one in asked}
    open_ = [one for one in asked if known[one.number] is None]

    def run(one: Asked) -> Trial:
        trial = _try(one, spec, task(one.parameters), site, place)
        records.add(trial)
        return trial

    with ThreadPoolExecutor(max(1, len(open_)), thread_name_prefix="trial") as pool:
        for trial in pool.map(run, open_):
            known[trial.number] = trial
    found = [trial for trial in known.values() if trial is not None]
    for one, trial in zip(asked, found, strict=True):
        if one in open_:
            study.tell(one, trial)
        elif not study.replay(one, trial):
            raise IntegrityError(
                f"trial {trial.number} is not the one that would be tried now",
                hint=f"another optuna? {records.path} can be removed: known versions are found",
            )
    return found


def _try(one: Asked, spec: SearchSpec, task: Task, site: Site, place: Workplace) -> Trial:
    pruned = False

    def hear(heard: Heard) -> None:
        nonlocal pruned
        place.hear(heard)
        metrics = (heard.advance.metrics if heard.advance else None) or {}
        if spec.prune is not None and spec.prune.metric in metrics:
            pruned = one.report(float(metrics[spec.prune.metric])) or pruned

    watched = replace(place, hear=hear, cancelled=lambda: pruned)
    base = Trial(number=one.number, parameters=one.parameters, state="failed")
    try:
        made = derive(task, site, watched)
        metrics = made.metrics or _known_metrics(made, site)
        values = tuple(float(metrics.get(name, float("nan"))) for name in spec.goal)
    except PortError:
        raise
    except LockgateError as error:
        reports = tuple(one.reports)
        if pruned and isinstance(error, StepFailedError):
            return replace(base, state="pruned", reports=reports, reason="worse than most")
        return replace(base, reports=reports, reason=error.message)
    trial = replace(
        base, metrics=metrics, values=values, reports=tuple(one.reports),
        digest=made.version.digest, version=made.version.number, seconds=made.seconds,
    )  # fmt: skip
    if all(isfinite(value) for value in values):
        return replace(trial, state="done")
    lacking = [name for name, value in zip(spec.goal, values, strict=True) if not isfinite(value)]
    given = ", ".join(sorted(metrics)[:20]) or "no metric"
    return replace(trial, values=(), reason=f"it has no {', '.join(lacking)}; it gave {given}")


def _known_metrics(made: Made, site: Site) -> Mapping[str, float]:
    """Returns the metrics of a version that was made before."""
    return site.versions.metrics_of(made.recipe)


class _Records:
    """The finished trials, whole on disk after each."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / TRIALS
        self._trials: dict[int, Trial] = {}
        if self.path.exists():
            for body in json.loads(self.path.read_text("utf-8")):
                trial = from_json(Trial, body)
                self._trials[trial.number] = trial

    def find(self, asked: Asked) -> Trial | None:
        return self._trials.get(asked.number)

    def add(self, trial: Trial) -> None:
        self._trials[trial.number] = trial
        listed = [to_json(self._trials[number]) for number in sorted(self._trials)]
        write_durably(self.path, json.dumps(listed).encode(), self.path.parent)
