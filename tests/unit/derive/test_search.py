"""Searching: every trial a version, the best wins, a kill loses no finished trial."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna", reason="optuna is not installed")

from lockgate.core.errors import IntegrityError, SpecError, StepFailedError
from lockgate.derive.pipeline import Pipeline, parse_pipeline
from lockgate.derive.search.run import Searched, search
from lockgate.derive.search.spec import SearchSpec
from lockgate.derive.search.study import Study, Trial, best

from .home import MODEL, Home

BOWL = """
import json, os, pathlib
s = json.loads(os.environ["LOCKGATE_PARAMETERS"])
for at in range(3):
    value = (s["x"] - 0.3) ** 2 + (s.get("n", 4) - 4) ** 2 / 50
    metrics = {"cost": value, "size": abs(s["x"])}
    print(json.dumps({"done": at + 1, "total": 3, "metrics": metrics}), flush=True)
if s["x"] < -1.9:
    raise SystemExit("too far out")
(pathlib.Path(os.environ["LOCKGATE_OUT"]) / "sum.json").write_text(json.dumps(s["x"]))
"""
SPACE = {"settings.x": {"low": -2.0, "high": 2.0}}


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path)
    yield made
    made.close()


def run(home: Home, **about: Any) -> Searched:
    from lockgate.derive.pipeline import _with
    from lockgate.derive.run import make_task

    name = about.pop("script", "bowl.py")
    spec = SearchSpec(**{"over": SPACE, "goal": {"cost": "minimize"}, "trials": 6, **about})
    script = str(home.folder / name)
    if name == "bowl.py":
        home.script(BOWL, name)

    def task(tried: Any) -> Any:
        parameters = _with({"script": script}, tried)
        return make_task("command", {}, parameters, to=MODEL)

    return search(spec, task, to=MODEL, seed=3, name="bowl", site=home.site, place=home.place)


def test_the_best_trial_wins_and_each_is_a_version(home: Home) -> None:
    found = run(home, trials=8)
    costs = [trial.values[0] for trial in found.trials]
    assert found.front[0].values[0] == min(costs)
    assert len(home.registry.model(MODEL).versions) == 8
    assert (
        home.read(MODEL, f"v{found.made.version.number}") == found.front[0].parameters["settings.x"]
    )
    labels = home.registry.version(MODEL, "v1").derived[0].metrics
    assert labels["cost"] == costs[0]
    svg = found.chart.read_text()
    assert svg.count("<circle") == 8
    assert "cost (minimize), 8 trials by tpe" in svg


def test_known_trials_are_not_run_again(home: Home) -> None:
    first = run(home)
    (home.folder / "derive").joinpath(first.chart.parent.name, "trials.json").unlink()
    again = run(home)
    assert [t.values for t in again.trials] == [t.values for t in first.trials]
    assert len(home.registry.model(MODEL).versions) == 6
    assert again.made.version == first.made.version


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_search_goes_on_with_the_trials_it_would_have_run(
    tmp_path: Path, workers: int
) -> None:
    whole_home = Home(tmp_path / "whole")
    whole = run(whole_home, workers=workers)
    whole_home.close()
    pid = os.fork()
    if not pid:
        child = Home(tmp_path / "killed")
        seen = 0

        def die(_: object) -> None:
            nonlocal seen
            seen += 1
            if seen == 8:  # in the middle of the third trial
                os.kill(os.getpid(), signal.SIGKILL)

        child.place = replace(child.place, hear=die)
        try:
            run(child, workers=workers)
        finally:
            os._exit(7)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    home = Home(tmp_path / "killed")
    before = len(home.registry.models()[MODEL].versions) if MODEL in home.registry.models() else 0
    assert before >= 1
    again = run(home, workers=workers)
    assert [t.parameters for t in again.trials] == [t.parameters for t in whole.trials]
    assert again.made.version.digest == whole.made.version.digest
    assert len(home.registry.model(MODEL).versions) == 6
    home.close()


def test_failed_trials_are_told_and_left(home: Home) -> None:
    over = {"settings.x": [-2.0, 0.5, -1.95]}
    found = run(home, over=over, method="grid", trials=10)
    assert sorted(t.state for t in found.trials) == ["done", "failed", "failed"]
    assert found.front[0].parameters == {"settings.x": 0.5}
    with pytest.raises(StepFailedError, match="none of 1 trials gave a result"):
        run(home, over={"settings.x": [-2.0]}, method="grid")


def test_a_goal_that_no_trial_has_is_told_with_those_that_there_are(home: Home) -> None:
    with pytest.raises(StepFailedError, match="it has no coast; it gave cost"):
        run(home, over={"settings.x": [0.5]}, method="grid", goal={"coast": "minimize"})


def test_hopeless_trials_are_ended_early(home: Home) -> None:
    pause = "    import time; time.sleep(0.4 * (abs(s['x']) > 1))\n"
    home.script(BOWL.replace("    print(", pause + "    print("), "slow.py")
    over = {"settings.x": [0.1, 0.2, 0.25, 0.3, 0.35, -1.5, 1.5]}
    prune = {"metric": "cost", "after_trials": 2, "after_reports": 0}
    found = run(home, over=over, method="grid", trials=7, prune=prune, script="slow.py")
    states = {trial.parameters["settings.x"]: trial.state for trial in found.trials}
    assert "pruned" in states.values()
    assert states[0.3] == "done" or states[0.3] == "pruned"
    assert found.front[0].values[0] == min(t.values[0] for t in found.trials if t.values)


def test_several_goals_have_a_front(home: Home) -> None:
    found = run(home, goal={"cost": "minimize", "size": "minimize"}, method="random", trials=10)
    for trial in found.front:
        assert not any(
            all(a <= b for a, b in zip(other.values, trial.values, strict=True))
            and other.values != trial.values
            for other in found.trials if other.values
        )  # fmt: skip
    assert [t.values[0] for t in found.front] == sorted(t.values[0] for t in found.front)


def test_best_is_by_direction() -> None:
    spec = SearchSpec(over=SPACE, goal={"accuracy": "maximize"})  # type: ignore[arg-type]
    trials = [Trial(number=i, parameters={}, state="done", values=(v,)) for i, v in
              enumerate((0.2, 0.9, 0.5))]  # fmt: skip
    assert [t.number for t in best(trials, spec)] == [1]


@pytest.mark.parametrize("method", ["random", "tpe", "gp", "nsga2"])
def test_every_method_is_the_same_for_the_same_seed(method: str) -> None:
    if method == "gp":
        pytest.importorskip("torch", reason="torch is not installed")
    spec = SearchSpec(over={"x": {"low": 0.0, "high": 1.0}, "n": {"low": 1, "high": 9}},
                      goal={"cost": "minimize"}, method=method)  # type: ignore[arg-type]  # fmt: skip
    seen = []
    for _ in range(2):
        study, found = Study(spec, 5), []
        for _ in range(14):
            (asked,) = study.ask(1)
            value = (asked.parameters["x"] - 0.3) ** 2 + asked.parameters["n"]
            study.tell(asked, Trial(number=asked.number, parameters={}, state="done",
                                    values=(value,)))  # fmt: skip
            found.append(asked.parameters)
        seen.append(found)
    assert seen[0] == seen[1]


def test_records_of_another_search_are_not_taken(home: Home) -> None:
    found = run(home)
    path = found.chart.parent / "trials.json"
    path.write_text(re.sub(r'"settings.x": -?[0-9.]+', '"settings.x": 0.123', path.read_text()))
    with pytest.raises(IntegrityError, match="not the one that would be tried now"):
        run(home)


def test_a_pipeline_may_search(home: Home) -> None:
    text = f"""
pipeline: tuned
stages:
  best:
    step: command
    with: {{script: {home.script(BOWL, "bowl.py")}, settings: {{n: 4}}}}
    search: {{over: {{settings.x: {{low: -1.0, high: 1.0}}}}, goal: {{cost: minimize}}, trials: 4}}
    to: acme/sums
"""
    pipeline = Pipeline(parse_pipeline(text), home.site)
    assert [(p.what, p.do) for p in pipeline.plan()] == [("search over command", "run")]
    made = pipeline.run(home.place, lambda _: None)
    assert made["best"].metrics["cost"] < 1
    assert any("trial 4 of 4" in heard.line for heard in home.heard)
    assert any("chart of the trials" in heard.line for heard in home.heard)


@pytest.mark.parametrize(
    ("search", "said"),
    [
        ("{over: {x: {low: 2, high: 1}}, goal: {a: minimize}}", "'low' is below"),
        ("{over: {x: {low: 0, high: 1, log: true}}, goal: {a: minimize}}", "above zero"),
        ("{over: {x: {low: 0, high: 1}}, goal: {a: minimize}, method: grid}", "lists of values"),
        ("{over: {x: [1]}, goal: {a: minimize, b: minimize}, method: gp}", "one goal"),
        ("{over: {x: [1]}, goal: {a: best}}", "minimize"),
        ("{over: {}, goal: {a: minimize}}", "over"),
    ],
)
def test_a_wrong_search_is_refused(search: str, said: str) -> None:
    text = f"pipeline: p\nstages: {{a: {{step: command, to: a/b, search: {search}}}}}"
    with pytest.raises(SpecError, match=said):
        parse_pipeline(text)
