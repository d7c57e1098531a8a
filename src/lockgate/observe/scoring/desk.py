"""The desk: puts copied questions to both versions, has their answers scored, records the scores.

Both versions answer the same question at the same time, so that each pair is a fair coin of its
own: which of the two is worse? The candidate's is recorded as the shadow of the baseline's. Nobody
waits for these answers, and no caller's answer is kept.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx2

from lockgate.core.errors import LockgateError
from lockgate.core.traffic import Endpoint, Sample
from lockgate.observe.scoring.copies import Copies, Copy
from lockgate.observe.scoring.worker import Worker

_log = logging.getLogger(__name__)
_TIMEOUT_S = 120.0
_POLL_S = 0.5
_REST_S = 15.0
"""Seconds that a scorer is left alone after it failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What to do with the copies of a route: whom to ask (version → endpoints), and what of."""

    candidate: str
    asked: Mapping[str, Sequence[Endpoint]]
    scorers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


class Desk:
    """Works through copies in `workers` threads until `close`.

    `task` gives the work of a route, or None; `record` takes the scores as samples.
    """

    def __init__(
        self, copies: Copies, *, task: Callable[[str], Task | None],
        record: Callable[[Sequence[Sample]], None], workers: int = 2,
    ) -> None:  # fmt: skip
        self._copies = copies
        self._task = task
        self._record = record
        self._stop = threading.Event()
        self._late: dict[str, float] = {}
        self._http = httpx2.Client(timeout=_TIMEOUT_S)
        self._pairs = ThreadPoolExecutor(2 * workers, "lockgate-ask")
        self._threads = [
            threading.Thread(target=self._run, name="scores", daemon=True) for _ in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stops; what is being asked is waited for a moment."""
        self._stop.set()
        for thread in self._threads:
            thread.join(2.0)
        self._pairs.shutdown(wait=False, cancel_futures=True)
        self._http.close()

    def _run(self) -> None:
        worker = Worker()
        while not self._stop.is_set():
            copy = self._copies.take(_POLL_S)
            if copy is None:
                continue
            try:
                self._work(copy, worker)
            except Exception:  # noqa: BLE001 - one copy's fault is not another one's
                if not self._stop.is_set():
                    _log.exception("a copy could not be scored")
        worker.close()

    def _work(self, copy: Copy, worker: Worker) -> None:
        route, _, revision = copy.route.partition("#")
        task = self._task(route)
        if task is None or not revision.isdigit():
            return
        now = time.time()
        asked = [version for version, endpoints in task.asked.items() if endpoints]
        answers = self._pairs.map(lambda v: self._ask(copy, task.asked[v]), asked)
        for version, answer in zip(asked, answers, strict=True):
            if answer is None:
                continue
            scores = self._scores(task, copy, answer, worker)
            if scores:
                sample = Sample(
                    at=now, route=route, version=version, propensity=1.0, revision=int(revision),
                    status=200, duration_s=0.0, request_id=copy.request_id, scores=scores,
                    mirrored=version == task.candidate,
                )  # fmt: skip
                self._record([sample])

    def _ask(self, copy: Copy, endpoints: Sequence[Endpoint]) -> Mapping[str, Any] | None:
        body = {key: value for key, value in copy.body.items() if key != "stream_options"}
        body["stream"] = False
        endpoint = endpoints[hash(copy.request_id) % len(endpoints)]
        try:
            reply = self._http.post(f"http://{endpoint.host}:{endpoint.port}{copy.path}", json=body)
            value = reply.json() if reply.status_code == 200 else None
        except (httpx2.HTTPError, ValueError):
            return None
        return value if isinstance(value, dict) else None

    def _scores(
        self, task: Task, copy: Copy, answer: Mapping[str, Any], worker: Worker
    ) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, definition in task.scorers.items():
            if time.monotonic() < self._late.get(name, 0.0):
                continue
            try:
                score = worker.score(definition, copy.body, answer)
            except LockgateError as error:
                _log.warning("the scorer %s: %s", name, error.message)
                self._late[name] = time.monotonic() + _REST_S
                continue
            if score is not None:
                found[name] = min(max(score, 0.0), 1.0)
        return found
