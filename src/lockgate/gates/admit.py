"""Admission: runs gates over a version, reuses answers that are known, and says what is next."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any, Literal, cast

from blake3 import blake3
from pydantic import BaseModel, ConfigDict, Field

from lockgate.core import canonical, document
from lockgate.core.digests import digest_of
from lockgate.core.errors import (
    GateRefusedError,
    HeldError,
    LockgateError,
    NotFoundError,
    RetrainError,
    UsageError,
)
from lockgate.core.events import VersionJudged
from lockgate.core.verdict import Verdict
from lockgate.gates.api import Asked, Gate, Remedy, Served, Subject

GROUP = "lockgate.gates"
HINT = "docs/gates.md describes every gate"
_OWN = {
    name: f"lockgate.gates.{name}:{name.capitalize()}"
    for name in (
        "approval", "budget", "data", "evaluation", "fairness", "harm", "performance", "privacy",
    )
}  # fmt: skip
_NEVER_REUSED = ("approval",)

Outcome = Literal["pass", "refused", "retrain", "held"]


class GatesSpec(BaseModel):
    """Gates in their order, each a name with its settings; the cheap ones belong first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    gates: list[dict[str, dict[str, Any] | None]] = Field(min_length=1, max_length=50)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A gate with its settings."""

    gate: Gate
    settings: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one gate said; `known`: it was asked the same before."""

    gate: str
    verdict: Verdict
    remedy: Remedy
    question: str
    known: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What all gates said. `retrain`: only what training can better is in the way."""

    outcome: Outcome
    answers: tuple[Answer, ...]

    @property
    def reasons(self) -> tuple[str, ...]:
        """A sentence for each gate that did not let it pass."""
        return tuple(
            f"{a.gate}: {a.verdict.reason}" for a in self.answers if a.verdict.outcome != "pass"
        )


def known_gates() -> dict[str, str]:
    """Returns `module:Class` by name; a package can't take the name of one of lockgate's own."""
    others = {point.name: point.value for point in metadata.entry_points(group=GROUP)}
    return {**others, **_OWN}


def find_gate(name: str) -> Gate:
    """Returns the gate `name`; raises NotFoundError, or UsageError when it can't be loaded."""
    known = known_gates()
    if name not in known:
        raise NotFoundError(
            f"there is no gate {name!r}", hint=f"there are: {', '.join(sorted(known))}"
        )
    module, _, attribute = known[name].partition(":")
    try:
        return cast("Gate", getattr(importlib.import_module(module), attribute)())
    except Exception as error:
        raise UsageError(f"the gate {name!r} ({known[name]}) can't be loaded: {error}") from error


def choose(listed: Sequence[Mapping[str, Any]]) -> list[Chosen]:
    """Returns the gates of a spec; raises SpecError with every mistake, or NotFoundError."""
    spec = document.validate({"gates": list(listed)}, GatesSpec, hint=HINT)
    chosen = []
    for item in spec.gates:
        if len(item) != 1:
            raise UsageError(f"a gate is one name with its settings, not {', '.join(item)}")
        ((name, settings),) = item.items()
        gate = find_gate(name)
        checked = document.validate(settings or {}, gate.settings, hint=HINT)
        chosen.append(Chosen(gate=gate, settings=checked))
    return chosen


def parse_gates(text: str) -> list[Chosen]:
    """Reads a file of gates; raises SpecError with every mistake, each with its line."""
    return choose(document.parse(text, GatesSpec, hint=HINT).gates)


def admit(
    chosen: Sequence[Chosen], asked: Asked, record: Callable[[VersionJudged], None],
    *, fresh: bool = False,
) -> Admission:  # fmt: skip
    """Asks every gate, in order; stops at the first that fails for good.

    What was asked before, to the last byte, is not asked again, unless `fresh`. `record` gets each
    answer. A gate that fails for want of training does not stop the others: all of what
    training has to reach is told at once.
    """
    answers: list[Answer] = []
    for one in chosen:
        wanted = question(one, asked)
        answer = _known(one, asked, wanted) if not fresh else None
        if answer is None:
            answer = _ask(one, asked, wanted)
        record(_judged(answer, asked))  # also what is known: it is the gate's last word now
        answers.append(answer)
        if answer.verdict.outcome == "fail" and answer.remedy != "retrain":
            break
    return Admission(outcome=_outcome(answers), answers=tuple(answers))


def _outcome(answers: Sequence[Answer]) -> Outcome:
    failed = [a for a in answers if a.verdict.outcome == "fail"]
    if any(a.remedy != "retrain" for a in failed):
        return "refused"
    if failed:
        return "retrain"
    return "held" if any(a.verdict.outcome == "hold" for a in answers) else "pass"


def _ask(one: Chosen, asked: Asked, wanted: str) -> Answer:
    asked.tell(one.gate.name, 0, 0)
    asked_at: set[str] = set()

    def serve(subject: Subject) -> Served:
        if subject.at is not None:
            asked_at.add(subject.at)
        return asked.serve(subject)

    verdict = one.gate.judge(one.settings, replace(asked, serve=serve))
    if asked_at:  # it stands in the ledger: nothing proves which bytes answered there
        where = " and ".join(sorted(asked_at))
        verdict = replace(verdict, reason=f"{verdict.reason} (asked at {where})")
    remedy: Remedy = "" if verdict.outcome == "pass" else one.gate.remedy
    return Answer(gate=one.gate.name, verdict=verdict, remedy=remedy, question=wanted)


def _known(one: Chosen, asked: Asked, wanted: str) -> Answer | None:
    if one.gate.name in _NEVER_REUSED:
        return None
    for judged in asked.candidate.judged:
        if judged.question == wanted and judged.verdict.outcome != "hold":
            return Answer(
                gate=judged.gate, verdict=judged.verdict, remedy=judged.remedy,
                question=wanted, known=True,
            )  # fmt: skip
    return None


def question(one: Chosen, asked: Asked) -> str:
    """Returns the digest of all that decides a gate's answer: who, against whom, and every file.

    Where versions are served elsewhere, their addresses too.
    """
    body: dict[str, Any] = {
        "gate": one.gate.name,
        "settings": one.settings.model_dump(mode="json"),
        "candidate": asked.candidate.digest,
        "baseline": asked.baseline.digest if asked.baseline else None,
        "target": asked.target,
        "files": list(_digests(one, asked)),
    }
    places = [subject and subject.at for subject in (asked.candidate, asked.baseline)]
    if any(places):
        body["at"] = places
    return digest_of(canonical.encode(body))


def _digests(one: Chosen, asked: Asked) -> Iterator[str]:
    for path in one.gate.reads(one.settings, asked):
        hasher = blake3()
        try:
            hasher.update_mmap(path)
        except OSError as error:
            raise UsageError(f"{path} can't be read: {error.strerror}") from error
        yield hasher.hexdigest()


def _judged(answer: Answer, asked: Asked) -> VersionJudged:
    return VersionJudged(
        model=asked.candidate.model, number=asked.candidate.number,
        digest=asked.candidate.digest, target=asked.target, gate=answer.gate,
        question=answer.question, verdict=_finite(answer.verdict), remedy=answer.remedy,
    )  # fmt: skip


def _finite(verdict: Verdict) -> Verdict:
    """Returns a verdict that the ledger can keep: numbers without end are left out."""
    checks = [
        replace(
            check, value=_or_none(check.value), baseline=_or_none(check.baseline),
            limit=_or_none(check.limit), low=_or_none(check.low), high=_or_none(check.high),
        )
        for check in verdict.checks
    ]  # fmt: skip
    return replace(verdict, checks=tuple(checks))


def _or_none(number: float | None) -> float | None:
    return number if number is not None and abs(number) < float("inf") else None


def refusal(admission: Admission, what: str, target: str) -> LockgateError | None:
    """Returns the error of what was not let in, None when it was."""
    reasons = "".join(f"\n  {reason}" for reason in admission.reasons)
    match admission.outcome:
        case "pass":
            return None
        case "held":
            return HeldError(f"{what} is not yet admitted to {target}:{reasons}",
                             hint="lockgate admit … --approve REASON, or more rows")  # fmt: skip
        case "retrain":
            return RetrainError(f"{what} has to be trained better for {target}:{reasons}",
                                hint="train to reach these, publish, and admit again")  # fmt: skip
    return GateRefusedError(f"{what} is refused for {target}:{reasons}", hint=HINT)
