"""The port of gates: one asks one question of a version and answers with a verdict."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from lockgate.core.events import VersionJudged
from lockgate.core.verdict import CheckResult, Outcome, Verdict

Remedy = Literal["", "retrain", "change", "approve"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A version that is judged, or that another one is compared with. `size` is in bytes.

    `at` is where it is said to be served already, `http://host:port`; None: it is started here.
    """

    model: str
    number: int
    digest: str
    size: int
    judged: tuple[VersionJudged, ...] = ()
    at: str | None = None

    def __str__(self) -> str:
        return f"{self.model}:v{self.number}"

    @property
    def asked_at(self) -> tuple[str, str | None]:
        """What is asked, and where: the same answers the same."""
        return self.digest, self.at


class Served(Protocol):
    """A version that answers: a replica of its own, on its real runtime, or one at an address."""

    @property
    def url(self) -> str:
        """Its address, `http://host:port`."""
        ...

    def post(self, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the JSON answer; raises TemporaryError for none, or for a status above 399."""
        ...

    def stream(self, path: str, body: Mapping[str, Any]) -> Generator[bytes, None, None]:
        """Yields the answer's bytes as they come; raises TemporaryError as `post` does."""
        ...

    def memory(self) -> int | None:
        """Returns the resident bytes of its processes now; None where they are not ours to see."""
        ...

    def folder(self) -> Path:
        """Returns the folder with the version's files, restored from the store."""
        ...


class Scores(Protocol):
    """Says how good an answer is; see `lockgate.observe.scoring`."""

    def __call__(
        self, definition: Mapping[str, Any], request: Mapping[str, Any], answer: Mapping[str, Any]
    ) -> float | None:
        """Returns a score from 0 (bad) to 1 (good); None where there is nothing to say."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a gate may look at. `baseline` is what serves at the target, None where nothing does.

    `serve` gives a version's replica, started when first asked for; `files` finds what a gate's
    settings name: a file beside the gates' own, or `owner/name:v1/path` in a stored dataset.
    `tell` gets what is being done, with counts. `answered` keeps what suites found out of versions,
    for the gates that follow.
    """

    candidate: Subject
    baseline: Subject | None
    target: str
    serve: Callable[[Subject], Served]
    files: Callable[[str], Path]
    scores: Scores
    tell: Callable[[str, int, int], None]
    now: float
    seed: int = 0
    answered: dict[tuple[str, tuple[str, str | None]], Any] = field(default_factory=dict)


class Gate(Protocol):
    """One question. `remedy` is what helps where it fails, `settings` its pydantic model."""

    name: str
    remedy: Remedy
    settings: type[Any]

    def reads(self, settings: Any, asked: Asked) -> Sequence[Path]:
        """Returns the files whose content is part of the question, besides the settings."""
        ...

    def judge(self, settings: Any, asked: Asked) -> Verdict:
        """Returns the answer with its numbers; `hold` where there is too little to go by.

        Raises UsageError for settings or files that it can't work with.
        """
        ...


def verdict_of(checks: Sequence[CheckResult], now: float) -> Verdict:
    """Returns the verdict of several checks: the worst of them, in its words."""
    order: tuple[Outcome, ...] = ("fail", "hold", "pass")
    for outcome in order:
        found = [check for check in checks if check.outcome == outcome]
        if found and outcome != "pass":
            reason = "; ".join(check.reason for check in found[:3])
            return Verdict(outcome=outcome, reason=reason, at=now, checks=tuple(checks))
    said = f"all {len(checks)} checks passed" if len(checks) != 1 else checks[0].reason
    if not checks:
        return Verdict(outcome="hold", reason="nothing was checked", at=now)
    return Verdict(outcome="pass", reason=said, at=now, checks=tuple(checks))
