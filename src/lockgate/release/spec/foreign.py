"""Specs of Argo Rollouts and Flagger → ours, with a list of what could not be carried. Pure.

Read from their documents: a `Rollout` (with `AnalysisTemplate`s beside it) or a `Canary`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from lockgate.core.errors import LockgateError, UsageError
from lockgate.core.units import parse_duration
from lockgate.release.spec.text import check_spec, load

Json = dict[str, Any]
_KINDS = ("Rollout", "Canary")
_LIMIT = re.compile(r"result(?:\[0\])?\s*(<=|<|>=|>)\s*([0-9.]+)")
_WORDS = {
    "error_rate": ("error", "5xx", "failure", "success", "availability"),
    "latency_p99": ("latency", "duration", "response-time", "p99"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """Our spec as plain values, and a sentence for everything that is not in it."""

    spec: Mapping[str, Any]
    left: tuple[str, ...]

    @property
    def text(self) -> str:
        """The spec as YAML, with what was left as comments on top."""
        notes = "".join(f"#   - {' '.join(note.split())}\n" for note in self.left)
        head = f"# Not carried over:\n{notes}" if notes else ""
        return head + yaml.safe_dump(dict(self.spec), sort_keys=False, allow_unicode=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draft:
    """A spec in the making."""

    spec: Json
    steps: list[Json] = field(default_factory=list)
    approve: list[float] = field(default_factory=list)
    checks: list[Json] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def leave(self, what: str) -> None:
        if what not in self.left:
            self.left.append(what)


def carry(text: str, *, model: str, version: str) -> Carried:
    """Returns the release spec that `text` (YAML, several documents) comes nearest to.

    Raises UsageError when it holds neither a Rollout nor a Canary, SpecError when it can't be read.
    """
    documents = [found for found in load(text) if isinstance(found, Mapping)]
    chosen = [found for found in documents if found.get("kind") in _KINDS]
    if len(chosen) != 1:
        raise UsageError(
            f"{len(chosen)} documents of kind Rollout or Canary, one is needed",
            hint="give the file of an Argo Rollout (with its AnalysisTemplates) or Flagger Canary",
        )
    draft = _Draft(spec={"model": model, "version": version, "strategy": {}})
    body = _mapping(chosen[0].get("spec"))
    if chosen[0]["kind"] == "Rollout":
        templates = [d for d in documents if str(d.get("kind", "")).endswith("AnalysisTemplate")]
        _rollout(draft, body, templates)
    else:
        _canary(draft, body)
    return _finish(draft)


def _finish(draft: _Draft) -> Carried:
    strategy = draft.spec["strategy"]
    if draft.steps:
        if draft.steps[-1]["share"] != 100:
            draft.steps.append({"share": 100})
        strategy["canary"] = draft.steps
    if draft.checks:
        draft.spec["checks"] = draft.checks
    else:
        draft.leave("no metric could be carried: without 'checks' every step passes by time")
    draft.approve[:] = [100.0 if before == -1.0 else before for before in draft.approve]
    if draft.approve:
        draft.spec["approve"] = {"before": sorted(set(draft.approve))}
    try:
        check_spec(draft.spec)
    except LockgateError as error:
        draft.leave(f"it needs a hand: {error.message}")
    return Carried(spec=draft.spec, left=tuple(draft.left))


def _rollout(draft: _Draft, body: Mapping[str, Any], templates: Sequence[Any]) -> None:
    if isinstance(body.get("replicas"), int):
        draft.spec["replicas"] = body["replicas"]
    strategy = _mapping(body.get("strategy"))
    for template in templates:
        for metric in _list(_mapping(template.get("spec")).get("metrics")):
            _argo_metric(draft, _mapping(metric))
    if "blueGreen" in strategy:
        _argo_blue_green(draft, _mapping(strategy["blueGreen"]))
    else:
        _argo_canary(draft, _mapping(strategy.get("canary")))
    for name in ("progressDeadlineSeconds", "workloadRef", "revisionHistoryLimit"):
        if name in body:
            draft.leave(f"{name}: set 'runtime.start_timeout', or nothing, instead")


def _argo_blue_green(draft: _Draft, found: Mapping[str, Any]) -> None:
    draft.spec["strategy"]["blue-green"] = True
    if found.get("autoPromotionEnabled") is False:
        draft.approve.append(100.0)
    if "autoPromotionSeconds" in found:
        draft.leave("autoPromotionSeconds: traffic moves when replicas are ready and approved")
    if "scaleDownDelaySeconds" in found:
        draft.spec["keep_previous"] = _time(draft, found["scaleDownDelaySeconds"])
    for name in ("prePromotionAnalysis", "previewService", "activeService"):
        if name in found:
            draft.leave(f"{name}: the gateway keeps its own routes; test by a 'shadow' before it")


def _argo_canary(draft: _Draft, found: Mapping[str, Any]) -> None:
    for step in _list(found.get("steps")):
        for name, value in _mapping(step).items():
            _argo_step(draft, name, value)
    if not draft.steps:
        draft.spec["strategy"]["rolling"] = {"batch": 1, "surge": 0 if _zero(found) else 1}
        draft.leave("a canary without steps is a rolling update: 'rolling'")
    for name in ("canaryService", "stableService", "trafficRouting", "maxUnavailable", "maxSurge",
                 "dynamicStableScale", "antiAffinity"):  # fmt: skip
        if name in found:
            draft.leave(f"canary.{name}: the gateway and the fleet do this themselves")
    for name in ("scaleDownDelaySeconds", "abortScaleDownDelaySeconds"):
        if name in found:
            draft.spec["keep_previous"] = _time(draft, found[name])


def _zero(found: Mapping[str, Any]) -> bool:
    return str(found.get("maxSurge", "25%")) in ("0", "0%")


def _argo_step(draft: _Draft, name: str, value: Any) -> None:
    if name == "setWeight" and isinstance(value, int | float):
        _share(draft, float(value))
    elif name == "pause":
        lasts = _mapping(value).get("duration")
        if lasts is None:
            draft.approve.append(-1.0)  # before whatever comes next
        elif draft.steps:
            draft.steps[-1]["bake"] = _time(draft, lasts)
    elif name == "analysis" and draft.steps:
        draft.steps[-1]["until"] = "safe"
    elif name == "setMirrorRoute":
        share = _mapping(value).get("percentage", 10)
        draft.spec["strategy"]["shadow"] = {"share": share}
    else:
        draft.leave(f"step {name}: there is no such step here")


def _share(draft: _Draft, share: float) -> None:
    """Adds a step, and settles what waited for 'the next one'."""
    known = [step["share"] for step in draft.steps]
    if not 0 < share <= 100 or share in known or (known and share < known[-1]):
        draft.leave(f"a step to {share:g}%: steps grow, from above zero")
        return
    whole = int(share) if share == int(share) else share
    draft.steps.append({"share": whole})
    draft.approve[:] = [whole if before == -1.0 else before for before in draft.approve]


def _argo_metric(draft: _Draft, metric: Mapping[str, Any]) -> None:
    name = str(metric.get("name", "?"))
    said = str(metric.get("successCondition") or "")
    match = _LIMIT.fullmatch(said.strip())
    if not match:
        draft.leave(f"metric {name}: the condition {said!r} is no plain limit; write a check")
        return
    _limit(draft, name, match[1].startswith("<"), float(match[2]))
    if metric.get("failureLimit") is not None:
        draft.leave(f"metric {name}: failureLimit; 'alpha' bounds false alarms instead")


def _limit(draft: _Draft, name: str, at_most: bool, value: float) -> None:
    """Adds a check for a metric whose name says what it is."""
    lower = name.lower()
    signal = next((s for s, words in _WORDS.items() if any(w in lower for w in words)), None)
    if signal is None:
        draft.leave(f"metric {name}: no signal is known by that name; write a check for it")
    elif signal == "error_rate":
        share = value / 100 if value > 1 else value
        share = share if at_most else 1 - share
        draft.checks.append({"signal": signal, "at_most": round(share, 6)})
    elif at_most:
        draft.checks.append({"signal": signal, "at_most": f"{value:g}s"})
        draft.leave(f"metric {name}: read as seconds at the 99th percentile; is that so?")
    else:
        draft.leave(f"metric {name}: a lower limit on a time")


def _canary(draft: _Draft, body: Mapping[str, Any]) -> None:
    found = _mapping(body.get("analysis") or body.get("canaryAnalysis"))
    interval = _time(draft, found.get("interval", "60s"))
    for share in _flagger_shares(found):
        _share(draft, share)
    for step in draft.steps:
        step["bake"] = interval
    if found.get("iterations") is not None:
        _flagger_iterations(draft, found, parse_duration(interval))
    if found.get("mirror") is True:
        draft.spec["strategy"]["shadow"] = {"share": found.get("mirrorWeight", 100)}
    if body.get("skipAnalysis") is not True:
        for metric in _list(found.get("metrics")):
            _flagger_metric(draft, _mapping(metric))
    for hook in _list(found.get("webhooks")):
        _flagger_hook(draft, _mapping(hook))
    if "threshold" in found:
        draft.leave("threshold (failed checks): 'alpha' bounds false alarms instead")
    if "sessionAffinity" in found:
        draft.leave("sessionAffinity by cookie: 'sticky' goes by a header")
    for name in ("autoscalerRef", "progressDeadlineSeconds", "service", "ingressRef"):
        if name in body:
            draft.leave(f"{name}: the gateway and the fleet do this themselves")


def _flagger_shares(found: Mapping[str, Any]) -> Iterator[float]:
    steps = found.get("stepWeights")
    if isinstance(steps, Sequence) and not isinstance(steps, str):
        yield from (float(step) for step in steps)
        return
    step, most = found.get("stepWeight"), found.get("maxWeight", 100)
    if isinstance(step, int) and isinstance(most, int) and 0 < step <= most <= 100:
        yield from (float(share) for share in range(step, most + 1, step))


def _flagger_iterations(draft: _Draft, found: Mapping[str, Any], interval: float) -> None:
    many = found["iterations"]
    lasts = f"{(many if isinstance(many, int) else 1) * interval:g}s"
    matches = [
        (name, _mapping(rule).get("exact"))
        for match in _list(found.get("match"))
        for name, rule in _mapping(_mapping(match).get("headers")).items()
    ]
    exact = [(name, value) for name, value in matches if value and name.lower() != "cookie"]
    if not matches:
        draft.spec["strategy"].update({"blue-green": True, "bake": lasts})
        return
    test: Json = {"share": 1, "last": lasts}
    if exact:
        test |= {"header": exact[0][0].lower(), "value": str(exact[0][1])}
    draft.spec["strategy"]["ab"] = test
    draft.leave("match: senders of the header get the candidate, and 1% of all others, by chance")
    for name, _ in [pair for pair in matches if pair not in exact[:1]]:
        draft.leave(f"match on {name}: one header with one exact value can be carried")


def _flagger_metric(draft: _Draft, metric: Mapping[str, Any]) -> None:
    name = str(metric.get("name", "?"))
    limits = _mapping(metric.get("thresholdRange"))
    if name == "request-success-rate" and "min" in limits:
        share = round(1 - float(limits["min"]) / 100, 6)
        draft.checks.append({"signal": "error_rate", "at_most": share})
    elif name == "request-duration" and "max" in limits:
        draft.checks.append({"signal": "latency_p99", "at_most": f"{float(limits['max']):g}ms"})
    elif "max" in limits:
        _limit(draft, name, True, float(limits["max"]))
    elif "min" in limits:
        _limit(draft, name, False, float(limits["min"]))
    else:
        draft.leave(f"metric {name}: it has no 'thresholdRange'")


def _flagger_hook(draft: _Draft, hook: Mapping[str, Any]) -> None:
    kind = str(hook.get("type", "?"))
    if kind in ("confirm-promotion", "confirm-traffic-increase"):
        draft.approve.append(100.0)
    else:
        draft.leave(f"webhook {hook.get('name', '?')} ({kind}): there are no webhooks")


def _time(draft: _Draft, value: Any) -> str:
    try:
        seconds = parse_duration(value)
    except LockgateError:
        draft.leave(f"the time {value!r} can't be read; 10m is put in its place")
        return "10m"
    return f"{seconds:g}s"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else ()
