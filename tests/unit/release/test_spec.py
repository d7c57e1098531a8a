"""The spec: all mistakes at once, each with its line; nothing hostile gets through."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockgate.core.errors import SpecError
from lockgate.core.events import VersionId
from lockgate.release.plan import Serving
from lockgate.release.planner import make_plan
from lockgate.release.routes import Route, Served
from lockgate.release.spec import parse_spec

GOOD = """\
model: acme/chat
version: v42
to: prod-eu
strategy:
  canary: [1, 5, 10, 100]
  bake: 10m
  min_requests: 500
checks:
  - {signal: ttft_p95, worse_by_at_most: 10%}
  - {signal: error_rate, worse_by_at_most: 25%, floor: 0.1%}
  - {signal: tokens_per_second, worse_by_at_most: 5%}
on_fail: rollback
approve: {before: [100]}
"""
SERVING = Served(
    release="rel-1", version=VersionId(number=1, digest="d1"), since=0.0,
    serving=Serving(replicas=3, runtime="onnx"),
)  # fmt: skip


def test_a_good_spec_becomes_a_plan() -> None:
    spec = parse_spec(GOOD)
    route = Route(name="acme/chat@prod-eu", model="acme/chat", line=(SERVING,))
    plan = make_plan(spec, route, VersionId(number=42, digest="d42"), bytes_to_move=7)
    assert [s.weight for s in plan.steps] == [100, 500, 1000, 10_000]
    assert [s.approval for s in plan.steps] == [False, False, False, True]
    assert plan.weights(0) == {"d42": 100, "d1": 9900}
    assert plan.weights(3) == {"d42": 10_000}
    assert plan.earliest_s == 2400
    assert plan.serving == SERVING.serving  # what the spec leaves open stays as it serves
    assert plan.checks[1].floor == pytest.approx(0.001)
    same = make_plan(spec, route, VersionId(number=42, digest="d42"), bytes_to_move=7)
    assert plan.digest == same.digest
    other = make_plan(spec, route, VersionId(number=43, digest="d43"), bytes_to_move=7)
    assert plan.digest != other.digest


def test_with_nothing_serving_there_is_one_step_and_nothing_to_judge() -> None:
    route = Route(name="acme/chat@prod-eu", model="acme/chat")
    plan = make_plan(parse_spec(GOOD), route, VersionId(number=1, digest="d"), bytes_to_move=0)
    assert [(s.weight, s.approval) for s in plan.steps] == [(10_000, True)]
    assert plan.checks == ()
    assert plan.strategy == "direct"


def test_all_mistakes_are_told_at_once_with_their_lines() -> None:
    bad = """\
model: Acme/Chat
version: v42
strategy:
  canary: [10, 5, 100]
  bake: soon
checks:
  - {signal: ttft_p95, worse_by_at_most: ten}
  - signal: speed
    worse_by_at_most: 10%
colour: red
"""
    with pytest.raises(SpecError) as caught:
        parse_spec(bad)
    told = {(problem.line, problem.path) for problem in caught.value.problems}
    assert {(1, "model"), (5, "strategy.bake"), (7, "checks.0.worse_by_at_most"),
            (8, "checks.1.signal"), (10, "colour")} <= told  # fmt: skip
    assert "the spec has" in caught.value.message


def spec(**changes: str) -> str:
    parts = {
        "model": "acme/chat", "version": "v1",
        "strategy": "{canary: [10, 100], bake: 1s, min_requests: 5}",
    } | changes  # fmt: skip
    return "\n".join(f"{name}: {value}" for name, value in parts.items())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"strategy": "{canary: [10, 50]}"}, "end with 100"),
        ({"strategy": "{canary: []}"}, "at least 1"),
        ({"strategy": "{canary: [0, 100]}"}, "greater than 0"),
        ({"strategy": "{canary: [.nan, 100]}"}, "finite"),
        ({"strategy": "{canary: [0.001, 100]}"}, "smallest step"),
        ({"strategy": "{}"}, "exactly one of 'canary', 'blue-green'"),
        ({"strategy": "{canary: [100], blue-green: true}"}, "exactly one of"),
        ({"strategy": "{blue-green: true}",
          "checks": "[{signal: error_rate, worse_by_at_most: 1%}]"}, "no baseline"),
        ({"checks": "[{signal: error_rate}]"}, "exactly one of 'worse_by_at_most', 'at_most'"),
        ({"checks": "[{signal: error_rate, at_most: 1%, worse_by_at_most: 1%}]"}, "exactly one of"),
        ({"checks": "[{signal: tokens_per_second, at_most: 3}]"}, "'at_least'"),
        ({"checks": "[{signal: latency_p95, at_most: 2s, floor: 1s}]"}, "'floor' goes with"),
        ({"approve": "{before: [50]}"}, "50, which is not a step"),
        ({"alpha": "0.9"}, "less than or equal to 0.2"),
        ({"replicas": "0"}, "greater than or equal to 1"),
        ({"replicas": "true"}, "integer"),
        ({"gates": "[Scan!]"}, "pattern"),
        ({"version": "v0"}, "does not name"),
        ({"alias": "v3"}, "alias"),
        ({"sticky": "'X Y'"}, "pattern"),
        ({"to": "../etc"}, "target"),
        ({"on_fail": "pray"}, "rollback"),
        ({"bucket": "0s"}, "greater than or equal to 0.1"),
    ],
)  # fmt: skip
def test_each_mistake_has_its_sentence(changes: dict[str, str], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        parse_spec(spec(**changes))


@pytest.mark.parametrize(
    "text",
    ["", "- a", "42", "{", "a: &x [*x]", "a: !!python/object:os.system x", "model: [" * 5000,
     "model: a\nmodel: b", "\0", "a: 2020-99-99", "? [a]\n: b", "x" * 1_100_000],
)  # fmt: skip
def test_what_is_no_spec_is_refused(text: str) -> None:
    with pytest.raises(SpecError):
        parse_spec(text)


def test_a_yaml_bomb_is_refused_at_once() -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60)]
    start = time.monotonic()
    with pytest.raises(SpecError, match="aliases"):
        parse_spec("\n".join(lines))
    assert time.monotonic() - start < 5


@given(st.text(max_size=200))
def test_noise_is_told_what_is_wrong_with_it(text: str) -> None:
    with pytest.raises(SpecError):
        parse_spec(text)
