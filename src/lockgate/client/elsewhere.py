"""A version that is served elsewhere already, and is asked at its address.

Nothing there proves which bytes answer: only that the server says it has a model of that name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

from lockgate.client.caller import Caller
from lockgate.core.errors import TemporaryError, UsageError
from lockgate.gates.api import Subject

_ADDRESS = re.compile(r"https?://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]{1,253})(:\d{1,5})?/?")


def check_address(url: str) -> str:
    """Returns `url` as `http://host:port`; raises UsageError for anything more or else.

    A path, a name or a password would end up in the ledger.
    """
    if not _ADDRESS.fullmatch(url):
        raise UsageError("that is no address of a server", hint="write it as http://host:port")
    return url.rstrip("/")


class Elsewhere:
    """A server at an address; see `lockgate.gates.api.Served`.

    `files` restores the version. Raises UsageError when it has no model of the subject's name.
    """

    def __init__(self, url: str, subject: Subject, files: Callable[[], Path]) -> None:
        self.url = url
        self._files = files
        self._caller = Caller(url)
        try:
            self._check(subject.model)
        except UsageError:
            self._caller.close()
            raise

    def _check(self, model: str) -> None:
        """Asks for its models as OpenAI's API does, then as the Open Inference Protocol does."""
        reasons = []
        try:
            listed = self._caller.get("/v1/models").get("data")
            names = [str(one.get("id")) for one in listed or () if isinstance(one, dict)]
            if model in names:
                return
            reasons.append(f"it serves {', '.join(names)[:200] or 'nothing'}")
        except (TemporaryError, TypeError) as error:
            reasons.append(str(error))
        try:
            if self._caller.get(f"/v2/models/{model}").get("name") == model:
                return
        except TemporaryError as error:
            reasons.append(str(error))
        raise UsageError(
            f"{self.url} does not serve {model}: {reasons[0]}",
            hint=f"start it under that name, as vllm serve … --served-model-name {model}",
        )

    def post(self, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `Served.post`."""
        return self._caller.post(path, body)

    def stream(self, path: str, body: Mapping[str, Any]) -> Generator[bytes, None, None]:
        """See `Served.stream`."""
        return self._caller.stream(path, body)

    def memory(self) -> None:
        """See `Served.memory`: its processes are not ours to see."""

    def folder(self) -> Path:
        """See `Served.folder`."""
        return self._files()

    def close(self) -> None:
        """Ends the connections; the server runs on."""
        self._caller.close()
