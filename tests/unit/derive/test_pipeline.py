"""Pipelines: planned, run, refused, and killed at every step they take."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import lockgate.derive.run
import lockgate.derive.work
from lockgate.core.errors import GateRefusedError, SpecError
from lockgate.derive.pipeline import Gated, Pipeline, Planned, parse_pipeline
from lockgate.derive.run import Made
from lockgate.host.jobs.local import LocalJobs

from .home import MODEL, Home

TEXT = """
pipeline: sums
stages:
  first:
    step: command
    with: {{script: {script}, settings: {{epochs: 3}}}}
    to: acme/sums
  second:
    step: command
    from: {{base: first, data: "acme/data:v1"}}
    with: {{script: {script}, settings: {{epochs: 4}}}}
    to: acme/sums
    alias: champion
  worthy: {{admit: second, gates: [{{budget: {{size: 1MB}}}}], target: prod}}
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path)
    made.publish("acme/data", rows=[1, 2])
    yield made
    made.close()


def pipeline(home: Home, text: str = TEXT) -> Pipeline:
    return Pipeline(parse_pipeline(text.format(script=home.script())), home.site)


def run(home: Home, admit: Callable[[Gated], None] = lambda _: None) -> dict[str, Made]:
    return pipeline(home).run(home.place, admit)


def shown(plan: list[Planned]) -> list[tuple[str, str]]:
    return [(planned.name, planned.do) for planned in plan]


def test_a_pipeline_is_planned_before_it_runs(home: Home) -> None:
    assert shown(pipeline(home).plan()) == [
        ("first", "run"),
        ("second", "wait"),
        ("worthy", "wait"),
    ]
    run(home)
    assert shown(pipeline(home).plan()) == [
        ("first", "reuse"), ("second", "reuse"), ("worthy", "judge")
    ]  # fmt: skip


def test_a_plan_says_what_a_run_took_last_time(home: Home) -> None:
    assert [planned.took for planned in pipeline(home).plan()] == [None, None, None]
    made = run(home)
    first, second, gate = pipeline(home).plan()
    assert first.took is not None
    assert first.took.seconds == pytest.approx(made["second"].seconds, abs=0.01)  # the newest
    assert first.took.peak_bytes > 1_000_000
    assert second.took is not None
    assert gate.took is None
    search = "search: {{over: {{settings.a: [1, 2]}}, goal: {{loss: minimize}}, trials: 2}}"
    text = TEXT.replace("    step: command\n", f"    {search}\n    step: command\n", 1)
    first, *_ = pipeline(home, text).plan()
    assert (first.do, first.runs) == ("run", 2)
    assert first.took is not None


def test_a_pipeline_runs_its_stages_in_order(home: Home) -> None:
    asked: list[Gated] = []
    made = run(home, asked.append)
    assert [str(m.version) for m in made.values()] == ["acme/sums:v1", "acme/sums:v2"]
    assert home.read(MODEL, "v2") == 16
    assert (str(asked[0].version), asked[0].target) == ("acme/sums:v2", "prod")
    assert asked[0].gates == [{"budget": {"size": "1MB"}}]
    relations = {edge.relation for edge in home.registry.version(MODEL, "v2").lineage}
    assert relations == {"trained-from", "trained-on"}
    assert list(pipeline(home).aliases(made)) == [(MODEL, "champion", made["second"].version)]
    again = run(home)
    assert all(m.reused for m in again.values())


def test_a_refused_version_ends_the_pipeline(home: Home) -> None:
    def refuse(_: Gated) -> None:
        raise GateRefusedError("too large")

    with pytest.raises(GateRefusedError):
        run(home, refuse)
    assert len(home.registry.model(MODEL).versions) == 2  # what was made stays, and is found


def test_all_mistakes_are_told_at_once(home: Home) -> None:
    text = """
pipeline: wrong
stages:
  one: {{step: tuna, to: acme/x}}
  two: {{step: command, from: {{base: three}}, with: {{script: x, colour: red}}, to: acme/x}}
  three: {{step: command, from: {{base: "acme/none:v1"}}, with: {{script: {script}}}, to: acme/x}}
"""
    with pytest.raises(SpecError) as caught:
        pipeline(home, text)
    said = str(caught.value)
    for part in ("no step 'tuna'", "'three' is no earlier stage", "stages.two.with.colour",
                 "there is no model acme/none"):  # fmt: skip
        assert part in said


SEARCH = """
pipeline: x
stages: {a: {step: c, to: a/b, search: {over: {x: %s}, goal: {loss: minimize}}}}
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pipeline: x\nstages: {a: {to: acme/x}}", "either 'step' or 'admit'"),
        ("pipeline: x\nstages: {a: {step: command}}", "'to' is missing"),
        ("pipeline: x\nstages: {a: {admit: b}}", "'gates' is missing"),
        ("pipeline: x\nstages: {a: {step: c, to: nowhere}}", "not a model name"),
        ("pipeline: x\nstages: {}", "stages"),
        ("pipeline: x\nstages: {a: {step: c, to: a/b, limits: {memory: lots}}}", "not a size"),
        ("pipeline: X!\nstages: {a: {step: c, to: a/b}}", "pipeline"),
        (SEARCH % "{low: -1.0e308, high: 1.0e308}", "over.x.range: 'high' - 'low' is more than"),
        (SEARCH % "{low: 2, high: 1}", "over.x.range: 'low' is below 'high'"),
        (SEARCH % "[]", "over.x.list: "),
    ],
)
def test_a_wrong_file_is_refused(text: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        parse_pipeline(text)


POINTS = [
    (lockgate.derive.work, "write_durably"), (lockgate.derive.work, "restore"),
    (lockgate.derive.work.trees, "remove"), (lockgate.derive.run, "publish"),
    (lockgate.derive.work.Workplace, "run"), (LocalJobs, "run"),
]  # fmt: skip


class Killer:
    """Ends this process by SIGKILL at the n-th moment: before and after each call of a point."""

    def __init__(self, at: int) -> None:
        self.left = at

    def moment(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.moment()
            result = function(*args, **kwargs)
            self.moment()
            return result

        return wrapped

    def arm(self, home: Home) -> None:
        for where, name in POINTS:
            setattr(where, name, self.around(getattr(where, name)))
        append = home.ledger.append
        home.ledger.append = self.around(append)  # type: ignore[method-assign]


def killed(folder: Path, at: int) -> bool:
    """Runs the pipeline in a process of its own, killed at moment `at`; False when it ended."""
    pid = os.fork()
    if not pid:
        code = 7
        try:
            home = Home(folder)
            Killer(at).arm(home)
            run(home)
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(pid, 0)[1]
    assert status in (0, signal.SIGKILL)
    return bool(status)


@pytest.mark.parametrize("part", range(4))
def test_killed_at_every_step_a_pipeline_ends_with_the_same_versions(
    tmp_path: Path, part: int
) -> None:
    at = part + 1
    while True:
        folder = tmp_path / str(at)
        home = Home(folder)
        home.publish("acme/data", rows=[1, 2])
        home.close()
        more = killed(folder, at)
        home = Home(folder)
        run(home)
        assert home.read(MODEL, "v1") == 6
        assert home.read(MODEL, "v2") == 16
        assert len(home.registry.model(MODEL).versions) == 2
        assert not any((folder / "derive").glob("*/job.json"))
        home.close()
        if not more:
            break
        at += 4
    assert at > 40
