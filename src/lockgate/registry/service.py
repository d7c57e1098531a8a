"""The registry: the one writer of `model/…` streams, over a store and a ledger."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from lockgate.core import canonical
from lockgate.core.clock import Clock
from lockgate.core.codec import to_json
from lockgate.core.digests import Digest, digest_of, short
from lockgate.core.errors import ConflictError, IntegrityError, NotFoundError, UsageError
from lockgate.core.events import (
    AliasMoved,
    Edge,
    RegistryEvent,
    TrainingReported,
    VersionDerived,
    VersionJudged,
    VersionPublished,
)
from lockgate.core.names import check_alias, check_model, parse_version
from lockgate.ledger.api import Ledger
from lockgate.registry import catalog
from lockgate.registry.bases import Shapes, candidates, score
from lockgate.registry.catalog import Model, Version
from lockgate.registry.manifest import Manifest, parse
from lockgate.store.api import Object, Objects

_TRIES = 5
_MAX_LABELS = 64
_MAX_DETAILS = 1_000_000
_LIKE = 0.2
_BASES = 4
_MAX_REPORTS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Details:
    """What a publisher says of a version beside its content."""

    environment: Mapping[str, str] = field(default_factory=dict)
    dependencies: tuple[str, ...] = ()
    source_revision: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    lineage: tuple[Edge, ...] = ()
    bytes_new: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A version and whether this publish made it (False: the same content was there)."""

    version: Version
    created: bool


class Registry:
    """Reads and writes what models there are."""

    def __init__(self, ledger: Ledger, objects: Objects, clock: Clock) -> None:
        self.objects = objects
        self._ledger = ledger
        self._clock = clock
        self._lock = threading.RLock()
        self._models: Mapping[str, Model] = {}
        self._seen = 0

    def models(self) -> Mapping[str, Model]:
        """Returns every model by name, as the ledger has it now."""
        with self._lock:
            while page := self._ledger.read(after=self._seen, limit=1000):
                for recorded in page:
                    self._models = catalog.evolve(self._models, recorded)
                self._seen = page[-1].position
            return self._models

    def model(self, name: str) -> Model:
        """Returns one model; raises NotFoundError."""
        models = self.models()
        if check_model(name) not in models:
            raise catalog.no_model(models, name)
        return models[name]

    def version(self, model: str, version: str) -> Version:
        """Returns the version that `version` (`v3`, alias, digest) names; raises NotFoundError."""
        return self.model(model).find(parse_version(version))

    def manifest(self, digest: str) -> Manifest:
        """Returns the manifest of a version; raises NotFoundError or IntegrityError."""
        return parse(bytes(self.objects.get(Digest(digest))))

    def commit(self, model: str, manifest: bytes, details: Details, *, actor: str) -> Published:
        """Makes the version of `manifest` true; the moment is the ledger's append.

        The same content again is the same version. Raises IntegrityError when the manifest is not
        sound or names bytes that are not in the store.
        """
        check_model(model)
        parsed = parse(manifest)
        with self._lock:
            absent = self._absent(parsed)
            if absent:
                raise IntegrityError(
                    f"{len(absent)} of the version's objects are not in the store, "
                    f"{short(min(absent))} among them",
                    hint="publish again: only what is missing will be sent",
                )
            digest = digest_of(manifest)
            self._check_details(details)
            self.objects.put([Object(digest=digest, data=manifest, hashed=True)])
            self.objects.flush([digest, *parsed.objects()])
            return self._append(model, digest, parsed, details, actor)

    def _absent(self, manifest: Manifest) -> set[Digest]:
        """Returns the objects that are not here, after a look at what others stored just now."""
        absent = self.objects.missing(manifest.objects())
        if absent:
            self.objects.flush(())
            absent = self.objects.missing(manifest.objects())
        return absent

    def bases(self, model: str, shapes: Shapes, parents: Sequence[str]) -> list[Digest]:
        """Returns up to four versions, by digest, that a folder with those tensors is most like.

        `parents` are declared ones; next come the model's own. Others must fit in type and shape.
        """
        models = self.models()
        near: list[tuple[float, Digest]] = []
        for version in candidates(models, check_model(model), parents):
            try:
                found = score(shapes, self.manifest(version.digest))
            except (NotFoundError, IntegrityError):
                continue  # a version that is hurt is nobody's base
            own = version.published.model == model
            bonus = 2.0 if version.digest in parents else 1.0 if own else 0.0
            if found > _LIKE:
                near.append((found + bonus, Digest(version.digest)))
        near.sort(key=lambda pair: -pair[0])
        return [digest for _, digest in near[:_BASES]]

    def _check_details(self, details: Details) -> None:
        if len(details.labels) > _MAX_LABELS:
            raise UsageError(f"a version has at most {_MAX_LABELS} labels")
        if len(canonical.encode(to_json(details))) > _MAX_DETAILS:
            raise UsageError(f"what is said of a version has at most {_MAX_DETAILS} bytes")
        self._check_edges(details.lineage)

    def _check_edges(self, edges: Iterable[Edge]) -> None:
        for edge in edges:
            if self.model(edge.model).by_digest(edge.digest) is None:
                raise UsageError(f"{edge.model} has no version {edge.digest} to be {edge.relation}")

    def _append(
        self, model: str, digest: Digest, manifest: Manifest, details: Details, actor: str
    ) -> Published:
        for _ in range(_TRIES):
            known = self.models().get(model, Model(name=model))
            same = known.by_digest(digest)
            if same:
                return Published(version=same, created=False)
            event = VersionPublished(
                model=model,
                number=len(known.versions) + 1,
                digest=digest,
                bytes_total=manifest.size,
                bytes_new=min(max(0, details.bytes_new), manifest.size),
                artifacts=len(manifest.artifacts),
                tensors=manifest.tensors,
                environment=details.environment,
                dependencies=details.dependencies,
                source_revision=details.source_revision,
                labels=details.labels,
                lineage=details.lineage,
            )
            try:
                self._write(model, event, actor)
            except ConflictError:
                continue
            return Published(version=self.version(model, digest), created=True)
        raise ConflictError(f"too many others publish to {model} at this moment")

    def derived(self, recipe_digest: str) -> Version | None:
        """Returns the version that a recipe is known to give, None when nobody ran it."""
        for model in self.models().values():
            for version in model.versions:
                if any(made.recipe_digest == recipe_digest for made in version.derived):
                    return version
        return None

    def last_run(self, model: str, step: str) -> VersionDerived | None:
        """Returns how `step` made the newest version of `model` that it made, None for none."""
        known = self.models().get(model)
        for version in reversed(known.versions if known else ()):
            for made in reversed(version.derived):
                if made.recipe.get("step") == step:
                    return made
        return None

    def record(self, event: VersionDerived | VersionJudged, *, actor: str) -> Version:
        """Keeps what a step or a gate says of a version; the same once more changes nothing.

        Raises NotFoundError for a version that is not here, UsageError for what is too large or
        names versions that there are not.
        """
        if len(canonical.encode(to_json(event))) > _MAX_DETAILS:
            raise UsageError(f"what is recorded of a version has at most {_MAX_DETAILS} bytes")
        if isinstance(event, VersionDerived):
            self._check_edges(event.lineage)
            if digest_of(canonical.encode(event.recipe)) != event.recipe_digest:
                raise IntegrityError("the recipe does not have the digest that it is said to have")
        with self._lock:
            found = self.version(event.model, event.digest)
            event = replace(event, number=found.number)
            if event not in found.derived and event != _last_word(found, event):
                self._write(event.model, event, actor)
            return self.version(event.model, event.digest)

    def report(self, event: TrainingReported, *, actor: str) -> TrainingReported:
        """Keeps what a training job says of a version; returns what is kept for that message.

        The same message again changes nothing. Raises NotFoundError for a version that is not
        here, ConflictError when the message said something else before, UsageError for one too
        many.
        """
        with self._lock:
            found = self.version(event.model, event.digest)
            event = replace(event, number=found.number)
            known = self._reported(event.hook, event.message)
            if known is not None and known != event:
                raise ConflictError(
                    f"message {event.message} of {event.hook} said something else before",
                    hint="give each message an id of its own",
                )
            if known is None:
                if len(found.reported) >= _MAX_REPORTS:
                    raise UsageError(f"a version has at most {_MAX_REPORTS} reports")
                self._write(event.model, event, actor)
            return event

    def _reported(self, hook: str, message: str) -> TrainingReported | None:
        every = (version for model in self.models().values() for version in model.versions)
        told = (event for version in every for event in version.reported)
        return next((e for e in told if (e.hook, e.message) == (hook, message)), None)

    def _write(self, model: str, event: RegistryEvent, actor: str) -> None:
        known = self.models().get(model, Model(name=model))
        self._ledger.append(
            f"model/{model}", known.events, [event], actor=actor, at=self._clock.now()
        )

    def move_alias(
        self, model: str, alias: str, version: str, *, actor: str, reason: str = ""
    ) -> Version:
        """Makes `alias` name `version`; nothing happens when it already does."""
        check_alias(alias)
        with self._lock:
            known = self.model(model)
            found = known.find(parse_version(version))
            previous = known.aliases.get(alias)
            if previous != found.number:
                event = AliasMoved(
                    model=model,
                    alias=alias,
                    number=found.number,
                    digest=found.digest,
                    previous=previous,
                    reason=reason,
                )
                self._write(model, event, actor)
            return found

    def discard(self, digests: Iterable[Digest]) -> int:
        """Removes those of `digests` that no version names; returns how many.

        For a publish that failed. One that runs beside it and counted on them is told by `commit`.
        While the manifest of any version can't be read nothing is removed: it might name them.
        """
        with self._lock:
            try:
                named = self.named()
            except (NotFoundError, IntegrityError):
                return 0
            loose = [digest for digest in digests if digest not in named]
            self.objects.discard(loose)
            return len(loose)

    def named(self) -> set[Digest]:
        """Returns every object that a version names, its manifest included.

        Raises NotFoundError or IntegrityError when a manifest can't be read.
        """
        named: set[Digest] = set()
        for model in self.models().values():
            for version in model.versions:
                named.add(Digest(version.digest))
                named.update(self.manifest(version.digest).objects())
        return named

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Holds back commits for as long as the block runs."""
        with self._lock:
            yield


def _last_word(version: Version, event: VersionDerived | VersionJudged) -> VersionJudged | None:
    """Returns what the gate of `event` said last of `version` for the same target."""
    if isinstance(event, VersionDerived):
        return None
    same = [j for j in version.judged if (j.gate, j.target) == (event.gate, event.target)]
    return same[-1] if same else None
