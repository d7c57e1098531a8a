"""The client: one method a verb; errors come back as the classes that the server raised."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import httpx2

from lockgate.client.home import START_HINT, Server, default_home, find_server
from lockgate.core.codec import from_json, to_json
from lockgate.core.digests import Digest, digest_of, parse_digest, short
from lockgate.core.errors import (
    ConflictError,
    DeadlineError,
    IntegrityError,
    LockgateError,
    Problem,
    SpecError,
    TemporaryError,
    error_class,
)
from lockgate.core.events import VersionPublished
from lockgate.core.names import check_release
from lockgate.registry.bases import Shapes
from lockgate.registry.catalog import Version
from lockgate.registry.service import Details, Published
from lockgate.store.api import Object, Objects
from lockgate.store.durable import stream_durably
from lockgate.store.frames import pack

Json = dict[str, Any]
_TIMEOUT_S = 60.0
_LONG_S = 3600.0
_POLL_S = 0.4


class Client:
    """A connection to one server. Use as a context manager, or `close` it."""

    def __init__(self, server: Server | None = None, *, actor: str | None = None) -> None:
        found = server or find_server(default_home())
        headers = {"authorization": f"Bearer {found.token}"}
        if actor:
            headers["lockgate-actor"] = actor.encode("ascii", "replace").decode().replace("?", "_")
        self.url = found.url
        self._store = found.store
        self._http = httpx2.Client(
            base_url=f"{found.url}/api/v1", headers=headers, timeout=_TIMEOUT_S, trust_env=False
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection."""
        self._http.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        content: Iterable[bytes] | None = None,
        query: Mapping[str, object] | None = None,
        timeout: float = _TIMEOUT_S,
    ) -> httpx2.Response:
        """Sends a request; raises the error that the server answered, or TemporaryError."""
        params = {name: str(value) for name, value in (query or {}).items() if value is not None}
        try:
            answer = self._http.request(
                method, path, json=body, content=content, params=params, timeout=timeout
            )
        except httpx2.TransportError as error:
            raise TemporaryError(
                f"the server at {self.url} does not answer: {error}", hint=START_HINT
            ) from error
        if answer.is_error:
            raise _error(answer)
        return answer

    def get(self, path: str, **query: object) -> Any:
        """Returns the JSON at `path`."""
        return self.request("GET", path, query=query, timeout=_LONG_S).json()

    def clock(self) -> float:
        """Returns the server's time, in seconds since the epoch."""
        return float(self.get("/status")["now"])

    def post(self, path: str, body: object) -> Any:
        """Returns the JSON answer to `body`."""
        return self.request("POST", path, body=body).json()

    def plan(self, asked: Mapping[str, object]) -> Json:
        """Returns what a release would do; `asked` has `yaml`, `spec`, or `model` and `version`."""
        found: Json = self.post("/plan", asked)
        return found

    def release(self, asked: Mapping[str, object]) -> Json:
        """Opens a release; `release` in the answer is None when the version serves already."""
        found: Json = self.post("/releases", asked)
        return found

    def explain(self, release: str) -> Json:
        """Returns everything known of a release now."""
        found: Json = self.get(f"/releases/{check_release(release)}")
        return found

    def tell(self, release: str, verb: str, reason: str) -> Json:
        """Gives a release a verb: `approve`, `hold`, `resume` or `promote`."""
        path = f"/releases/{check_release(release)}/{verb}"
        found: Json = self.post(path, {"reason": reason})
        return found

    def replay(self, release: str, yaml: str | None = None) -> Json:
        """Judges a release's samples anew, under the checks of the spec `yaml` or its own."""
        path = f"/releases/{check_release(release)}/replay"
        found: Json = self.request("POST", path, body={"yaml": yaml}, timeout=_LONG_S).json()
        return found

    def rollback(
        self, model: str, *, reason: str, target: str = "local", version: str | None = None
    ) -> str:
        """Takes traffic off what was released last; returns the release that does it."""
        body = {"reason": reason, "target": target, "version": version}
        return str(self.post(f"/models/{model}/rollback", body)["release"])

    def block(
        self, model: str, *, reason: str, target: str = "local", seconds: float | None = None
    ) -> str:
        """Lets no release of `model` go forward for `seconds` (None: until `unblock`)."""
        body = {"reason": reason, "target": target, "seconds": seconds}
        return str(self.post(f"/models/{model}/block", body)["route"])

    def unblock(self, model: str, *, reason: str, target: str = "local") -> str:
        """Ends a block."""
        body = {"reason": reason, "target": target}
        return str(self.post(f"/models/{model}/unblock", body)["route"])

    def watch(
        self,
        release: str,
        *,
        timeout: float | None = None,
        until: Callable[[Json], bool] = lambda view: bool(view["final"]),
    ) -> Iterator[Json]:
        """Yields the release's view again and again, last of all the one that `until` accepts.

        Goes on over a restart of the server. Raises DeadlineError after `timeout` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        view: Json = {}
        while True:
            try:
                view = self.explain(release)
            except TemporaryError as error:
                if view:
                    yield {**view, "trouble": error.message}
            else:
                yield view
                if until(view):
                    return
            if deadline is not None and time.monotonic() > deadline:
                raise DeadlineError(
                    f"{release} is not done after {timeout:g} s", hint=f"lockgate watch {release}"
                )
            time.sleep(_POLL_S)

    def commit(self, model: str, manifest: bytes, details: Details, *, actor: str) -> Published:
        """See `Registry.commit`; the server records its own name for the caller."""
        del actor
        body = {"manifest": manifest.decode("utf-8"), "details": to_json(details)}
        path = f"/models/{model}/versions"
        answer = self.request("POST", path, body=body, timeout=_LONG_S).json()
        version = Version(
            published=from_json(VersionPublished, answer), at=0.0, publisher=answer["publisher"]
        )
        return Published(version=version, created=answer["created"])

    def objects(self) -> Objects:
        """Returns the server's objects: its store itself where that is near, else over HTTP.

        A near store takes bytes without a detour through the server, which sees them at commit.
        With `$LOCKGATE_CACHE`, a folder, only frames that are not there travel over HTTP.
        """
        folder, cache = self._store, os.environ.get("LOCKGATE_CACHE")
        near = folder is not None and os.access(folder, os.R_OK | os.W_OK | os.X_OK)
        if not near and not cache:
            return RemoteObjects(self)
        from lockgate.store.blobs.open import open_blobs
        from lockgate.store.packs import PackStore

        store = PackStore(open_blobs(str(folder) if near else str(cache)))
        if near:
            return store
        from lockgate.client.pulled import PulledObjects

        return PulledObjects(self, store)

    def stream(
        self, path: str, body: object, report: Callable[[int, int], None] | None = None
    ) -> Json:
        """Returns the last line of a long answer; `report` gets what is done and the total.

        Raises the error that it ends with.
        """
        last: Json = {}
        with self._http.stream("POST", path, json=body, timeout=_LONG_S) as answer:
            if answer.is_error:
                answer.read()
                raise _error(answer)
            for line in answer.iter_lines():
                last = json.loads(line)
                if report and "total" in last:
                    report(last["done"], last["total"])
        if "error" in last:
            raise _from_body(last["error"])
        if "result" not in last:
            raise TemporaryError("the server ended its answer too early", hint="try it again")
        result: Json = last["result"]
        return result

    def download(self, path: str, file: Path) -> None:
        """Writes what is at `path` to `file`, which appears whole or not at all.

        Raises ConflictError when the file is there already.
        """
        if file.exists():
            raise ConflictError(f"{file} is there already", hint="name a file that is new")
        with self._http.stream("GET", path, timeout=_LONG_S) as answer:
            if answer.is_error:
                answer.read()
                raise _error(answer)
            file.parent.mkdir(parents=True, exist_ok=True)
            stream_durably(file, answer.iter_bytes(1 << 20), file.parent)

    def upload(self, path: str, file: Path, **query: object) -> Json:
        """Sends a file; returns the JSON answer."""
        with file.open("rb") as source:
            parts = iter(lambda: source.read(1 << 20), b"")
            answer = self.request("POST", path, content=parts, query=query, timeout=_LONG_S)
        found: Json = answer.json()
        return found

    def bases(self, model: str, shapes: Shapes, parents: Sequence[str]) -> list[Digest]:
        """See `Registry.bases`."""
        tensors = [[dtype, list(shape), count] for (dtype, shape), count in shapes.items()]
        body = {"tensors": tensors, "parents": list(parents)}
        found = self.post(f"/models/{model}/bases", body)["bases"]
        return [parse_digest(digest) for digest in found]

    def discard(self, digests: Iterable[Digest]) -> int:
        """See `Registry.discard`."""
        return int(self.post("/objects/discard", {"digests": list(digests)})["discarded"])


def connect(home: Path | None = None, url: str | None = None, actor: str | None = None) -> Client:
    """Returns a client of the server of `home`, or of the one at `url`."""
    return Client(find_server(home or default_home(), url), actor=actor)


def _error(answer: httpx2.Response) -> LockgateError:
    try:
        body = answer.json()["error"]
        message, code, hint = str(body["message"]), str(body["code"]), body.get("hint")
    except (ValueError, KeyError, TypeError):
        return LockgateError(f"the server answered {answer.status_code}: {answer.text[:200]}")
    if code == SpecError.code:
        problems = [Problem(**problem) for problem in body.get("problems", [])]
        return SpecError(problems, hint=hint)
    return error_class(code)(message, hint=hint)


def _from_body(body: Json) -> LockgateError:
    return error_class(str(body["code"]))(str(body["message"]), hint=body.get("hint"))


class RemoteObjects:
    """`Objects` of a server, over HTTP: only what is missing travels."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def missing(self, sizes: Mapping[Digest, int]) -> set[Digest]:
        """See `Objects.missing`."""
        found = self._client.post("/objects/missing", {"sizes": dict(sizes)})
        return {Digest(digest) for digest in found["missing"]}

    def put(self, objects: Iterable[Object]) -> None:
        """See `Objects.put`; the objects of one call travel in one body."""
        self._client.request("POST", "/objects", content=pack(objects), timeout=_LONG_S)

    def get(self, digest: Digest) -> bytes:
        """See `Objects.get`."""
        data = self._client.request("GET", f"/objects/{digest}").content
        if digest_of(data) != digest:
            raise IntegrityError(f"object {short(digest)} was damaged on its way here")
        return data

    def digests(self) -> Iterator[Digest]:
        """See `Objects.digests`."""
        after = ""
        while page := self._client.get("/objects", after=after):
            yield from (Digest(digest) for digest in page)
            after = page[-1]

    def flush(self, digests: Iterable[Digest]) -> None:
        """See `Objects.flush`."""
        self._client.post("/objects/flush", {"digests": list(digests)})

    def discard(self, digests: Iterable[Digest]) -> None:
        """See `Objects.discard`; the server keeps what a version names."""
        self._client.discard(digests)
