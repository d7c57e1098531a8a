"""Specs of other tools: what is carried is a valid spec of ours, the rest is said."""

from __future__ import annotations

from contextlib import suppress

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lockgate.core.errors import LockgateError, UsageError
from lockgate.release.spec import parse_spec
from lockgate.release.spec.foreign import Carried, carry

ROLLOUT = """
apiVersion: argoproj.io/v1alpha1
kind: Rollout
metadata: {name: chat}
spec:
  replicas: 5
  progressDeadlineSeconds: 900
  strategy:
    canary:
      canaryService: chat-canary
      trafficRouting: {istio: {virtualService: {name: chat}}}
      abortScaleDownDelaySeconds: 600
      steps:
        - setWeight: 5
        - pause: {duration: 10m}
        - analysis: {templates: [{templateName: good}]}
        - setWeight: 25
        - pause: {duration: 3600}
        - pause: {}
        - setWeight: 60
        - setCanaryScale: {replicas: 3}
---
kind: AnalysisTemplate
metadata: {name: good}
spec:
  metrics:
    - name: success-rate
      interval: 1m
      failureLimit: 3
      successCondition: result[0] >= 0.995
      provider: {prometheus: {query: "sum(rate(x[1m]))"}}
    - name: p99-latency
      successCondition: result < 0.8
    - name: mystery
      successCondition: len(result) > 0
"""
CANARY = """
apiVersion: flagger.app/v1beta1
kind: Canary
metadata: {name: chat}
spec:
  service: {port: 80}
  analysis:
    interval: 2m
    threshold: 5
    maxWeight: 50
    stepWeight: 20
    metrics:
      - {name: request-success-rate, thresholdRange: {min: 99}, interval: 1m}
      - {name: request-duration, thresholdRange: {max: 500}}
      - {name: "404s percentage", templateRef: {name: x}, thresholdRange: {max: 5}}
    webhooks:
      - {name: gate, type: confirm-promotion, url: "http://x"}
      - {name: load, type: rollout, url: "http://y"}
"""


def carried(text: str) -> Carried:
    found = carry(text, model="acme/chat", version="v2")
    parse_spec(found.text)  # what is printed is a spec
    return found


def test_an_argo_rollout() -> None:
    found = carried(ROLLOUT)
    assert found.spec["strategy"] == {
        "canary": [
            {"share": 5, "bake": "600s", "until": "safe"},
            {"share": 25, "bake": "3600s"},
            {"share": 60},
            {"share": 100},
        ]
    }
    assert (found.spec["replicas"], found.spec["keep_previous"]) == (5, "600s")
    assert found.spec["approve"] == {"before": [60]}
    assert found.spec["checks"] == [
        {"signal": "error_rate", "at_most": 0.005},
        {"signal": "latency_p99", "at_most": "0.8s"},
    ]
    said = "\n".join(found.left)
    for word in ("failureLimit", "mystery", "setCanaryScale", "trafficRouting", "canaryService",
                 "progressDeadlineSeconds"):  # fmt: skip
        assert word in said


def test_an_argo_blue_green_with_a_manual_promotion() -> None:
    found = carried(
        "kind: Rollout\nspec:\n  strategy:\n    blueGreen:\n      autoPromotionEnabled: false\n"
        "      scaleDownDelaySeconds: 30\n      previewService: p\n"
    )
    assert found.spec["strategy"] == {"blue-green": True}
    assert found.spec["approve"] == {"before": [100.0]}
    assert found.spec["keep_previous"] == "30s"


def test_an_argo_canary_without_steps_is_rolling() -> None:
    found = carried("kind: Rollout\nspec: {replicas: 4, strategy: {canary: {maxSurge: 0}}}")
    assert found.spec["strategy"] == {"rolling": {"batch": 1, "surge": 0}}


def test_a_flagger_canary() -> None:
    found = carried(CANARY)
    assert found.spec["strategy"]["canary"] == [
        {"share": 20, "bake": "120s"}, {"share": 40, "bake": "120s"}, {"share": 100},
    ]  # fmt: skip
    assert found.spec["checks"] == [
        {"signal": "error_rate", "at_most": 0.01},
        {"signal": "latency_p99", "at_most": "500ms"},
    ]
    assert found.spec["approve"] == {"before": [100.0]}
    said = "\n".join(found.left)
    assert "webhook load" in said
    assert "404s percentage" in said
    assert "threshold" in said


def test_a_flagger_ab_test() -> None:
    found = carried(
        "kind: Canary\nspec:\n  analysis:\n    interval: 1m\n    iterations: 10\n    match:\n"
        "      - headers: {x-canary: {exact: insider}}\n"
        '      - headers: {cookie: {regex: "^(.*?;)?(canary=always)(;.*)?$"}}\n'
    )
    assert found.spec["strategy"]["ab"] == {
        "share": 1, "last": "600s", "header": "x-canary", "value": "insider",
    }  # fmt: skip
    assert "cookie" in "\n".join(found.left)


@pytest.mark.parametrize("text", ["", "kind: Deployment", "[]", f"{ROLLOUT}---\n{CANARY}"])
def test_what_is_neither_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        carry(text, model="acme/chat", version="v2")


words = st.sampled_from(
    ["canary", "steps", "setWeight", "pause", "duration", "analysis", "metrics", "name", "match",
     "headers", "exact", "iterations", "interval", "stepWeight", "maxWeight", "thresholdRange",
     "max", "min", "strategy", "blueGreen", "replicas", "webhooks", "type", "successCondition"]
)  # fmt: skip
leaves = st.none() | st.booleans() | st.integers(-5, 300) | st.floats(allow_nan=False) | st.text(
    max_size=8
) | words  # fmt: skip
trees = st.recursive(
    leaves, lambda t: st.lists(t, max_size=3) | st.dictionaries(words, t, max_size=4), max_leaves=20
)


@given(kind=st.sampled_from(["Rollout", "Canary"]), body=trees)
def test_a_stranger_never_crashes_it(kind: str, body: object) -> None:
    text = yaml.safe_dump({"kind": kind, "spec": body})
    with suppress(LockgateError):
        carry(text, model="acme/chat", version="v2")


def test_a_pause_at_the_end_is_an_approval_before_everybody() -> None:
    steps = "[{setWeight: 20}, {pause: {}}]"
    found = carried(f"kind: Rollout\nspec: {{strategy: {{canary: {{steps: {steps}}}}}}}")
    assert found.spec["approve"] == {"before": [100.0]}
    huge = "[{setWeight: 1.0e+400}, {setWeight: 20}]"
    found = carried(f"kind: Rollout\nspec: {{strategy: {{canary: {{steps: {huge}}}}}}}")
    assert [step["share"] for step in found.spec["strategy"]["canary"]] == [20, 100]
