"""What the ledger says of models: versions, aliases, lineage. Pure folds over its events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from lockgate.core.digests import short
from lockgate.core.errors import NotFoundError
from lockgate.core.events import (
    AliasMoved,
    Edge,
    TrainingReported,
    VersionDerived,
    VersionJudged,
    VersionPublished,
)
from lockgate.core.names import VersionRef
from lockgate.ledger.api import Recorded


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A published version: the event that made it, when, and by whom.

    `derived`: the steps that made it, should there be any; `judged`: what gates said of it, each
    question's last answer; `reported`: what training jobs said of it, in order.
    """

    published: VersionPublished
    at: float
    publisher: str
    derived: tuple[VersionDerived, ...] = ()
    judged: tuple[VersionJudged, ...] = ()
    reported: tuple[TrainingReported, ...] = ()

    @property
    def number(self) -> int:
        """Its short name's number."""
        return self.published.number

    @property
    def digest(self) -> str:
        """Its identity."""
        return self.published.digest

    @property
    def lineage(self) -> tuple[Edge, ...]:
        """What it came from: as its publisher said, and as the steps that made it say."""
        edges = (*self.published.lineage, *(e for d in self.derived for e in d.lineage))
        return tuple(dict.fromkeys(edges))


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A named line of versions, in order, and where its aliases point.

    `alias_times` says when each was moved last (seconds since the epoch); `events` is the length
    of its stream.
    """

    name: str
    versions: tuple[Version, ...] = ()
    aliases: Mapping[str, int] = field(default_factory=dict)
    alias_times: Mapping[str, float] = field(default_factory=dict)
    events: int = 0

    def find(self, ref: VersionRef) -> Version:
        """Returns the version that `ref` names; raises NotFoundError."""
        number = self.aliases.get(ref.alias, 0) if ref.alias else ref.number
        for version in self.versions:
            if version.number == number or version.digest == ref.digest:
                return version
        known = ", ".join(f"v{version.number}" for version in self.versions[-5:])
        hint = f"it has {known}" + (
            f" and the aliases {', '.join(sorted(self.aliases))}" if self.aliases else ""
        )
        raise NotFoundError(f"{self.name} has no version {ref}", hint=hint)

    def by_digest(self, digest: str) -> Version | None:
        """Returns the version with that digest, if the model has it."""
        return next((v for v in self.versions if v.digest == digest), None)


def evolve(models: Mapping[str, Model], recorded: Recorded) -> Mapping[str, Model]:
    """Returns the catalog after one more event; other events than the registry's change nothing."""
    event = recorded.event
    if isinstance(event, VersionPublished):
        model = models.get(event.model, Model(name=event.model))
        version = Version(published=event, at=recorded.at, publisher=recorded.actor)
        model = replace(model, versions=(*model.versions, version), events=recorded.version)
        return {**models, event.model: model}
    if isinstance(event, AliasMoved):
        model = models.get(event.model, Model(name=event.model))
        aliases = {**model.aliases, event.alias: event.number}
        times = {**model.alias_times, event.alias: recorded.at}
        model = replace(model, aliases=aliases, alias_times=times, events=recorded.version)
        return {**models, event.model: model}
    if isinstance(event, VersionDerived | VersionJudged | TrainingReported):
        model = models.get(event.model, Model(name=event.model))
        versions = tuple(_told(version, event) for version in model.versions)
        return {**models, event.model: replace(model, versions=versions, events=recorded.version)}
    return models


def _told(version: Version, event: VersionDerived | VersionJudged | TrainingReported) -> Version:
    """Returns `version` after what the event says of it."""
    if version.digest != event.digest:
        return version
    if isinstance(event, TrainingReported):
        return replace(version, reported=(*version.reported, event))
    if isinstance(event, VersionDerived):
        others = (d for d in version.derived if d.recipe_digest != event.recipe_digest)
        return replace(version, derived=(*others, event))
    rest = (j for j in version.judged if j.question != event.question)
    return replace(version, judged=(*rest, event))  # the last answer stands last


@dataclass(frozen=True, slots=True, kw_only=True)
class Ancestor:
    """One step up the lineage: `edge` leads from `child` (a digest) to it, `depth` steps up."""

    edge: Edge
    child: str
    depth: int


def ancestors(models: Mapping[str, Model], version: Version) -> Iterator[Ancestor]:
    """Yields every edge above `version`, nearest first; nothing is walked twice."""
    seen = {version.digest}
    level = [version]
    depth = 0
    while level:
        depth += 1
        above: list[Version] = []
        for child in level:
            for edge in child.lineage:
                yield Ancestor(edge=edge, child=child.digest, depth=depth)
                parent = models.get(edge.model, Model(name=edge.model)).by_digest(edge.digest)
                if parent and parent.digest not in seen:
                    seen.add(parent.digest)
                    above.append(parent)
        level = above


def descendants(models: Mapping[str, Model], digest: str) -> Iterator[Version]:
    """Yields the versions, of any model, with an edge to `digest`."""
    for model in models.values():
        for version in model.versions:
            if any(edge.digest == digest for edge in version.lineage):
                yield version


def no_model(models: Mapping[str, Model], name: str) -> NotFoundError:
    """Returns the error for a model that nobody published."""
    known = ", ".join(sorted(models)[:8])
    return NotFoundError(
        f"there is no model {name}",
        hint=f"there are: {known}" if known else "publish one: lockgate publish FOLDER " + name,
    )


def describe(version: Version) -> str:
    """Returns `v3 (blake3:1f2e3d4c5b6a)`."""
    return f"v{version.number} ({short(version.digest)})"
