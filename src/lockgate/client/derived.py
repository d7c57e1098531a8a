"""`Versions` of a server, over HTTP: what steps need to know, and what they say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lockgate.client.client import Client
from lockgate.core.codec import to_json
from lockgate.core.errors import NotFoundError
from lockgate.core.events import VersionDerived, VersionJudged
from lockgate.derive.recipe import Given
from lockgate.derive.run import Took


def record(client: Client, event: VersionDerived | VersionJudged) -> None:
    """Keeps what a step or a gate says of a version; the path names which."""
    body = to_json(event)
    for name in ("model", "number", "digest"):
        del body[name]
    verb = "derived" if isinstance(event, VersionDerived) else "judged"
    client.post(f"/models/{event.model}/versions/{event.digest}/{verb}", body)


class RemoteVersions:
    """What a server knows of versions and recipes."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def find(self, model: str, version: str) -> Given:
        """See `Versions.find`."""
        return _given(self._client.get(f"/models/{model}/versions/{version}"))

    def derived(self, recipe_digest: str) -> Given | None:
        """See `Versions.derived`."""
        try:
            return _given(self._client.get(f"/recipes/{recipe_digest}"))
        except NotFoundError:
            return None

    def record_derived(self, event: VersionDerived) -> None:
        """See `Versions.record_derived`."""
        record(self._client, event)

    def metrics_of(self, recipe_digest: str) -> Mapping[str, float]:
        """See `Versions.metrics_of`."""
        found = self._client.get(f"/recipes/{recipe_digest}")
        for made in found["derived"]:
            if made["recipe_digest"] == recipe_digest:
                metrics: Mapping[str, float] = made["metrics"]
                return metrics
        raise NotFoundError(f"nobody ran the recipe {recipe_digest}")

    def recipe_of(self, model: str, version: str) -> Mapping[str, Any]:
        """See `Versions.recipe_of`."""
        found = self._client.get(f"/models/{model}/versions/{version}")
        if not found["derived"]:
            raise NotFoundError(f"no step made {model} v{found['number']}: it was published")
        recipe: Mapping[str, Any] = found["derived"][-1]["recipe"]
        return recipe

    def took(self, step: str, model: str) -> Took | None:
        """See `Versions.took`."""
        try:
            found = self._client.get(f"/models/{model}/steps/{step}")
        except NotFoundError:
            return None
        return Took(seconds=found["seconds"], peak_bytes=found["peak_bytes"])


def _given(view: Mapping[str, Any]) -> Given:
    return Given(name="", model=view["model"], number=view["number"], digest=view["digest"])
