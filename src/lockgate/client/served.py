"""Replicas for gates: a version on its real runtime, for as long as it is asked.

Each runs as a job under a warden, so that nothing of it outlives the command that asked.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, Self

from lockgate.client.caller import Caller
from lockgate.client.elsewhere import Elsewhere
from lockgate.core.digests import Digest, hex_of
from lockgate.core.errors import LockgateError, UsageError
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
_LOOK_S = 0.1


class Replica:
    """A version that answers; see `lockgate.gates.api.Served`."""

    def __init__(self, subject: Subject, source: Path, folder: Path, place: Workplace) -> None:
        port = free_port()
        endpoint = Endpoint(host="127.0.0.1", port=port)
        self.url = f"http://127.0.0.1:{port}"
        self._source = source
        self._folder = folder
        self._stop = threading.Event()
        self._ended: Ended | None = None
        self._caller = Caller(self.url)
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
        return self._caller.passes(probe.method, probe.path, probe.body)

    def post(self, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `Served.post`."""
        return self._caller.post(path, body)

    def stream(self, path: str, body: Mapping[str, Any]) -> Generator[bytes, None, None]:
        """See `Served.stream`."""
        return self._caller.stream(path, body)

    def folder(self) -> Path:
        """See `Served.folder`."""
        return self._source

    def memory(self) -> int:
        """See `Served.memory`."""
        return memory_of(self._folder)

    def close(self) -> None:
        """Ends it."""
        self._stop.set()
        self._thread.join()
        self._caller.close()
        shutil.rmtree(self._folder, ignore_errors=True)


class Replicas:
    """Starts a replica for each version that is asked for; ends them all at the end.

    A version that is served elsewhere is asked there.
    """

    def __init__(self, place: Workplace) -> None:
        self._place = place
        self._running: dict[tuple[str, str | None], Replica | Elsewhere] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for replica in self._running.values():
            replica.close()

    def serve(self, subject: Subject) -> Replica | Elsewhere:
        """Returns the version's replica, started if it does not run yet."""
        key = subject.asked_at
        if key not in self._running:
            self._running[key] = self._start(subject) if subject.at is None else self._find(subject)
        return self._running[key]

    def _find(self, subject: Subject) -> Elsewhere:
        return Elsewhere(subject.at or "", subject, lambda: self._place.input(subject.digest))

    def _start(self, subject: Subject) -> Replica:
        source = self._place.input(subject.digest)
        name = f"serve-{hex_of(Digest(subject.digest))[:12]}-{time.monotonic_ns():x}"
        folder = self._place.folder / name
        folder.mkdir(parents=True)
        (folder / "tmp").mkdir()
        try:
            return Replica(subject, source, folder, self._place)
        except LockgateError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
