"""Everything that can happen, as one tagged union; the tag of an event is its class name.

Streams: `model/<owner>/<name>` holds a model's versions and aliases, `release/<id>` one release,
`route/<name>` what people forbid there.
Who and when stand on the ledger's envelope, not in the event.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from lockgate.core.codec import from_json, to_json
from lockgate.core.verdict import Verdict

Relation = Literal[
    "trained-from", "trained-on", "quantized-from", "calibrated-on", "pruned-from",
    "distilled-from", "merged-from", "converted-from", "evaluated-on", "derived-from",
]  # fmt: skip
HeldBecause = Literal["approval", "evidence", "person", "capacity", "window", "blocked"]
RevertCause = Literal["verdict", "person", "replicas", "gateway", "deadline", "superseded"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """One typed edge of the lineage: this version is `relation` the version `digest`."""

    relation: Relation
    model: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionId:
    """A version as a release knows it: its number for people, its digest for truth."""

    number: int
    digest: str

    def __str__(self) -> str:
        return f"v{self.number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionPublished:
    """A version became true. Sizes are bytes; `bytes_new` were not in the store before."""

    model: str
    number: int
    digest: str
    bytes_total: int
    bytes_new: int
    artifacts: int
    tensors: int
    environment: Mapping[str, str] = field(default_factory=dict)
    dependencies: tuple[str, ...] = ()
    source_revision: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    lineage: tuple[Edge, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasMoved:
    """An alias names another version now; `previous` is the number it named before."""

    model: str
    alias: str
    number: int
    digest: str
    previous: int | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionDerived:
    """A step made this version; who runs `recipe` again gets the same one, if it says so.

    `recipe` is what was run (step, code, parameters, seed, libraries, inputs), `recipe_digest` its
    name. `metrics` are the step's own, `seconds` of wall clock and `peak_bytes` of memory what it
    took, `log` the end of what it said.
    """

    model: str
    number: int
    digest: str
    recipe_digest: str
    recipe: Mapping[str, object]
    lineage: tuple[Edge, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    peak_bytes: int = 0
    log: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionJudged:
    """A gate judged a version for a target; the same `question` has the same answer.

    `gate` names it, `question` is the digest of what was asked (the version, the gate's settings,
    what it was compared with). `remedy` says what would help where it failed.
    """

    model: str
    number: int
    digest: str
    target: str
    gate: str
    question: str
    verdict: Verdict
    remedy: Literal["", "retrain", "change", "approve"] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingReported:
    """A training job says how its `run` went, of which this version came; `url` leads to it.

    `hook` is what it came in by, `message` the id of what was said; both once are one event.
    """

    model: str
    number: int
    digest: str
    status: Literal["succeeded", "failed"]
    run: str
    hook: str
    message: str
    url: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseOpened:
    """A release exists. `plan` is the whole plan that it follows; `baseline` None: first one.

    `supersedes`: the release under way that turned back for it; it waits until that has ended.
    """

    release: str
    model: str
    target: str
    route: str
    candidate: VersionId
    baseline: VersionId | None
    plan: Mapping[str, object]
    plan_digest: str
    intent: Literal["release", "rollback"] = "release"
    reason: str = ""
    supersedes: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseAdmitted:
    """Every gate let the version in."""

    release: str
    verdicts: tuple[Verdict, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseRefused:
    """A gate refused; nothing was changed. Final."""

    release: str
    verdicts: tuple[Verdict, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityReady:
    """`replicas` of the candidate are ready and warm."""

    release: str
    replicas: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStarted:
    """The intent to make `weights` the split (digest → weight of 10,000).

    `samples_from`: the position of the samples where the release's evidence begins (first step).
    """

    release: str
    step: int
    weights: Mapping[str, int]
    samples_from: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficShifted:
    """Every proxy acknowledged the split of `step`; the bake begins."""

    release: str
    step: int
    weights: Mapping[str, int]
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """The judge's verdict changed."""

    release: str
    step: int
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPassed:
    """The bake of `step` ended well."""

    release: str
    step: int
    verdict: Verdict | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseHeld:
    """The release waits where it is; traffic stays as it is."""

    release: str
    step: int
    because: HeldBecause
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseResumed:
    """What it waited for has come, or a person said go on."""

    release: str
    step: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepApproved:
    """A person allowed the release to enter `step`."""

    release: str
    step: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PromotionRequested:
    """A person asked to skip the rest of the steps."""

    release: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackStarted:
    """The release goes back: traffic before everything."""

    release: str
    cause: RevertCause
    reason: str
    verdict: Verdict | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficReverted:
    """Every proxy acknowledged that the candidate has no traffic."""

    release: str
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasePromoted:
    """The candidate is what serves. Final for the release."""

    release: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseReverted:
    """The candidate is gone; the baseline serves. Final."""

    release: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseFailed:
    """It could not get as far as traffic; nothing that serves was changed. Final."""

    release: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRetired:
    """The last replica of a version that no longer serves is drained and gone."""

    release: str
    version: VersionId


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionFailed:
    """An adapter could not do what was decided; the next tick tries again or turns back."""

    release: str
    action: str
    reason: str
    permanent: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteBlocked:
    """Nothing goes forward on `route`; going back stays possible.

    Until `until`, in seconds since the epoch; None: until it is unblocked.
    """

    route: str
    reason: str
    until: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteUnblocked:
    """Releases on `route` go on."""

    route: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownEvent:
    """An event that a newer lockgate wrote; kept as it is, folded by nobody."""

    kind: str
    body: Mapping[str, object]


RegistryEvent = VersionPublished | AliasMoved | VersionDerived | VersionJudged | TrainingReported
ReleaseEvent = (
    ReleaseOpened
    | ReleaseAdmitted
    | ReleaseRefused
    | CapacityReady
    | StepStarted
    | TrafficShifted
    | Judged
    | StepPassed
    | ReleaseHeld
    | ReleaseResumed
    | StepApproved
    | PromotionRequested
    | RollbackStarted
    | TrafficReverted
    | ReleasePromoted
    | ReleaseReverted
    | ReleaseFailed
    | VersionRetired
    | ActionFailed
)
RouteEvent = RouteBlocked | RouteUnblocked
Event = RegistryEvent | ReleaseEvent | RouteEvent | UnknownEvent


def event_classes() -> dict[str, type]:
    """Returns every event class by its tag, in the order of the union."""
    known = (*get_args(RegistryEvent), *get_args(ReleaseEvent), *get_args(RouteEvent))
    return {kind.__name__: kind for kind in known}


def kind_of(event: Event) -> str:
    """Returns the tag of `event`."""
    return event.kind if isinstance(event, UnknownEvent) else type(event).__name__


def body_of(event: Event) -> dict[str, object]:
    """Returns the event's fields as JSON values."""
    if isinstance(event, UnknownEvent):
        return dict(event.body)
    body: dict[str, object] = to_json(event)
    return body


def parse_event(kind: str, body: Mapping[str, object]) -> Event:
    """Returns the event of that tag; UnknownEvent for a tag that is not ours.

    Raises IntegrityError when the body does not fit the tag.
    """
    known = event_classes().get(kind)
    if known is None:
        return UnknownEvent(kind=kind, body=body)
    event: Event = from_json(known, body)
    return event
