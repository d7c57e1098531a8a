"""Replicas for gates: a version on its real runtime, for as long as it is asked.

Each runs as a job under a warden, so that nothing of it outlives the command that asked.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import httpx2

from lockgate.core.digests import Digest, hex_of
from lockgate.core.errors import LockgateError, TemporaryError, UsageError
from lockgate.core.traffic import Endpoint
from lockgate.derive.work import Workplace
from lockgate.fleet.api import Job as Serving
from lockgate.fleet.api import Launch
from lockgate.fleet.replica import free_port
from lockgate.fleet.runtimes.choose import choose
from lockgate.gates.api import Subject
from lockgate.host.jobs.api import Ended, Job, Limits
from lockgate.host.jobs.local import memory_of, tail

_START_S = 120.0
_ANSWER_S = 120.0
_LOOK_S = 0.1


class Replica:
    """A version that answers; see `lockgate.gates.api.Served`."""

    def __init__(self, subject: Subject, source: Path, folder: Path, place: Workplace) -> None:
        port = free_port()
        endpoint = Endpoint(host="127.0.0.1", port=port)
        self.url = f"http://127.0.0.1:{port}"
        self._folder = folder
        self._stop = threading.Event()
        self._ended: Ended | None = None
        self._http = httpx2.Client(base_url=self.url, timeout=_ANSWER_S, trust_env=False)
        launch = choose(source).launch(
            Serving(folder=source, model=subject.model, version=subject.digest, endpoint=endpoint)
        )
        self._thread = threading.Thread(target=self._run, args=(launch, place), daemon=True)
        self._thread.start()
        self._wait(launch, str(subject))

    def _run(self, launch: Launch, place: Workplace) -> None:
        job = Job(
            name=self._folder.name, argv=tuple(launch.argv), folder=self._folder,
            env={**place.environment(self._folder, 1), **launch.env},
            limits=Limits(silent_s=0.0),
        )  # fmt: skip
        self._ended = place.jobs.run(job, lambda _: None, self._stop.is_set)

    def _wait(self, launch: Launch, what: str) -> None:
        deadline = time.monotonic() + _START_S
        while not self._passes(launch.ready):
            if not self._thread.is_alive() or time.monotonic() > deadline:
                said = tail(self._folder / "log.txt").strip().splitlines()
                self.close()
                raise UsageError(
                    f"{what} can't be served here: {said[-1][:300] if said else 'no word of it'}",
                    hint="does its runtime start at all? lockgate release tries the same",
                )
            time.sleep(_LOOK_S)
        for probe in launch.warmups:
            self._passes(probe)

    def _passes(self, probe: Any) -> bool:
        try:
            answer = self._http.request(
                probe.method, probe.path, json=probe.body and dict(probe.body)
            )
        except httpx2.HTTPError:
            return False
        return answer.is_success

    def post(self, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `Served.post`."""
        try:
            answer = self._http.post(path, json=dict(body))
            found = answer.json() if answer.is_success else None
        except (httpx2.HTTPError, ValueError) as error:
            raise TemporaryError(f"no answer from {self.url}{path}: {error}") from error
        if not isinstance(found, dict):
            said = answer.text[:200]
            raise TemporaryError(f"{self.url}{path} answered {answer.status_code}: {said}")
        return found

    def memory(self) -> int:
        """See `Served.memory`."""
        return memory_of(self._folder)

    def close(self) -> None:
        """Ends it."""
        self._stop.set()
        self._thread.join()
        self._http.close()
        shutil.rmtree(self._folder, ignore_errors=True)


class Replicas:
    """Starts a replica for each version that is asked for; ends them all at the end."""

    def __init__(self, place: Workplace) -> None:
        self._place = place
        self._running: dict[str, Replica] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for replica in self._running.values():
            replica.close()

    def serve(self, subject: Subject) -> Replica:
        """Returns the version's replica, started if it does not run yet."""
        if subject.digest not in self._running:
            source = self._place.input(subject.digest)
            name = f"serve-{hex_of(Digest(subject.digest))[:12]}-{time.monotonic_ns():x}"
            folder = self._place.folder / name
            folder.mkdir(parents=True)
            (folder / "tmp").mkdir()
            try:
                self._running[subject.digest] = Replica(subject, source, folder, self._place)
            except LockgateError:
                shutil.rmtree(folder, ignore_errors=True)
                raise
        return self._running[subject.digest]
