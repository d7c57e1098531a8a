"""Asks a serving process over HTTP: bounded, no redirects, no proxies."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Mapping
from typing import Any

import httpx2

from lockgate.core.errors import TemporaryError

_SILENT_S = 120.0
_WHOLE_S = 900.0
_MOST = 1 << 26  # bytes of one answer


class Caller:
    """One address that is asked. What comes back is bounded in bytes and in time."""

    def __init__(self, url: str) -> None:
        self.url = url
        # a connection each: a load generator's threads must not wait for one another
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=64)
        self._http = httpx2.Client(
            base_url=url, timeout=_SILENT_S, limits=limits, trust_env=False,
            follow_redirects=False, headers={"accept-encoding": "identity"},
        )  # fmt: skip

    def get(self, path: str) -> Mapping[str, Any]:
        """Returns the JSON object at `path`; raises TemporaryError for anything else."""
        return self._object(path, self._answer("GET", path, None))

    def post(self, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `lockgate.gates.api.Served.post`."""
        return self._object(path, self._answer("POST", path, body))

    def stream(self, path: str, body: Mapping[str, Any]) -> Generator[bytes, None, None]:
        """See `lockgate.gates.api.Served.stream`."""
        return self._answer("POST", path, body)

    def passes(self, method: str, path: str, body: Mapping[str, Any] | None) -> bool:
        """Says whether an answer is 2xx."""
        try:
            for _ in self._answer(method, path, body):
                pass
        except TemporaryError:
            return False
        return True

    def close(self) -> None:
        """Ends its connections."""
        self._http.close()

    def _answer(
        self, method: str, path: str, body: Mapping[str, Any] | None
    ) -> Generator[bytes, None, None]:
        """Yields an answer's bytes; raises TemporaryError for none, or any status but 2xx."""
        sent = None if body is None else dict(body)
        deadline = time.monotonic() + _WHOLE_S
        size = 0
        try:
            with self._http.stream(method, path, json=sent) as answer:
                for chunk in answer.iter_bytes():
                    if not answer.is_success:
                        said = chunk[:200].decode("utf-8", errors="replace")
                        raise self._failed(path, f"{answer.status_code}: {said}")
                    size += len(chunk)
                    if size > _MOST or time.monotonic() > deadline:
                        raise self._failed(path, "without an end")
                    yield chunk
                if not answer.is_success:
                    raise self._failed(path, f"{answer.status_code}")
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise TemporaryError(f"no answer from {self.url}{path}: {error}") from error

    def _object(self, path: str, chunks: Generator[bytes, None, None]) -> Mapping[str, Any]:
        try:
            found = json.loads(b"".join(chunks))
        except (ValueError, RecursionError) as error:
            raise TemporaryError(f"no answer from {self.url}{path}: {error}") from error
        if not isinstance(found, dict):
            raise self._failed(path, "with no JSON object")
        return found

    def _failed(self, path: str, how: str) -> TemporaryError:
        return TemporaryError(f"{self.url}{path} answered {how}")
