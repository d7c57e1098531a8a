"""`Versions` over a registry in this process: for tests, and for who has no server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lockgate.core.errors import NotFoundError
from lockgate.core.events import VersionDerived
from lockgate.derive.recipe import Given
from lockgate.derive.run import Took
from lockgate.registry.service import Registry


class RegistryVersions:
    """What a registry knows of versions and recipes."""

    def __init__(self, registry: Registry, *, actor: str) -> None:
        self._registry = registry
        self._actor = actor

    def find(self, model: str, version: str) -> Given:
        """See `Versions.find`."""
        found = self._registry.version(model, version)
        return Given(name="", model=model, number=found.number, digest=found.digest)

    def derived(self, recipe_digest: str) -> Given | None:
        """See `Versions.derived`."""
        found = self._registry.derived(recipe_digest)
        if found is None:
            return None
        model = found.published.model
        return Given(name="", model=model, number=found.number, digest=found.digest)

    def record_derived(self, event: VersionDerived) -> None:
        """See `Versions.record_derived`."""
        self._registry.record(event, actor=self._actor)

    def metrics_of(self, recipe_digest: str) -> Mapping[str, float]:
        """See `Versions.metrics_of`."""
        found = self._registry.derived(recipe_digest)
        for made in found.derived if found else ():
            if made.recipe_digest == recipe_digest:
                return made.metrics
        raise NotFoundError(f"nobody ran the recipe {recipe_digest}")

    def recipe_of(self, model: str, version: str) -> Mapping[str, Any]:
        """See `Versions.recipe_of`."""
        found = self._registry.version(model, version)
        if not found.derived:
            raise NotFoundError(f"no step made {model} v{found.number}: it was published")
        return found.derived[-1].recipe

    def took(self, step: str, model: str) -> Took | None:
        """See `Versions.took`."""
        found = self._registry.last_run(model, step)
        return found if found is None else Took(seconds=found.seconds, peak_bytes=found.peak_bytes)
