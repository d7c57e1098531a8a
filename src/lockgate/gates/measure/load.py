"""The load generator: requests that begin on time, whatever the answers do (open loop)."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from lockgate.core.errors import TemporaryError, UsageError
from lockgate.gates.api import Served
from lockgate.gates.measure.streams import Heard, listen

_MOST_THREADS = 256
_PERCENTILES = (50, 95, 99)
_CHAT = "/v1/chat/completions"
_COMPLETIONS = (_CHAT, "/v1/completions")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked; `stream`: the answer comes token by token."""

    path: str
    body: Mapping[str, Any]
    stream: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a version did under load: seconds of each answer, tokens, failures.

    `first`: seconds to the first token, `between`: from a token to the next, of each streamed
    answer that has them; `streamed` answers in all. `memory` in bytes, None where it is not seen.
    """

    seconds: tuple[float, ...] = ()
    first: tuple[float, ...] = ()
    between: tuple[float, ...] = ()
    streamed: int = 0
    tokens: int = 0
    failed: int = 0
    busy_s: float = 0.0
    memory: int | None = 0

    def figures(self, price: float | None) -> dict[str, float]:
        """Returns the figures by name; `cost_per_1000_tokens` with a price an hour.

        A figure that was not measured is not there.
        """
        found = {f"latency_p{p}": float("inf") for p in _PERCENTILES}  # of no answer
        for name, times in (
            ("latency", self.seconds), ("ttft", self.first), ("tpot", self.between),
        ):  # fmt: skip
            found |= _percentiles(name, times)
        asked = len(self.seconds) + self.failed
        found["errors"] = self.failed / asked if asked else 1.0
        rate = self.tokens / self.busy_s if self.busy_s else 0.0
        found["tokens_per_second"] = rate
        if self.memory is not None:
            found["memory"] = float(self.memory)
        if price is not None:
            found["cost_per_1000_tokens"] = price / 3.6 / rate if rate else float("inf")
        return found


def _percentiles(name: str, times: Sequence[float]) -> dict[str, float]:
    return {f"{name}_p{p}": float(np.quantile(times, p / 100)) for p in _PERCENTILES if times}


def requests_of(rows: Sequence[Mapping[str, Any]], *, stream: bool) -> list[Request]:
    """Returns a file's rows as requests; `stream`: those to a language model have theirs streamed.

    Raises UsageError for a row that is no request.
    """
    found = []
    for number, row in enumerate(rows, 1):
        path, body = row.get("path", _CHAT), row.get("body", {})
        if not isinstance(path, str) or not path.startswith("/") or not isinstance(body, dict):
            raise UsageError(
                f"row {number} is no request", hint="a path that begins with /, a body"
            )
        if stream and path in _COMPLETIONS:
            body = {"stream_options": {"include_usage": True}, **body, "stream": True}
        found.append(Request(path=path, body=body, stream=body.get("stream") is True))
    return found


def join(one: Load, other: Load) -> Load:
    """Returns two loads as one."""
    both = None if one.memory is None or other.memory is None else max(one.memory, other.memory)
    return Load(
        seconds=one.seconds + other.seconds, first=one.first + other.first,
        between=one.between + other.between, streamed=one.streamed + other.streamed,
        tokens=one.tokens + other.tokens, failed=one.failed + other.failed,
        busy_s=one.busy_s + other.busy_s, memory=both,
    )  # fmt: skip


def put_load(
    served: Served, requests: Sequence[Request], rate: float, last: float, seed: int
) -> Load:
    """Begins `rate` requests a second for `last` seconds; waits for all answers.

    Times count from when a request should have begun, so that waiting in line is not left out.
    """
    draw = np.random.default_rng(seed)
    count = max(1, round(rate * last))
    chosen = draw.integers(0, len(requests), count)
    began = time.monotonic()

    def put(number: int) -> tuple[float, float, bool, Heard] | None:
        due = began + number / rate
        time.sleep(max(0.0, due - time.monotonic()))
        request = requests[int(chosen[number])]
        heard = ask(served, request)
        return None if heard is None else (due, time.monotonic() - due, request.stream, heard)

    with ThreadPoolExecutor(min(_MOST_THREADS, count), thread_name_prefix="load") as pool:
        found = list(pool.map(put, range(count)))
    good = [item for item in found if item is not None]
    return Load(
        seconds=tuple(seconds for _, seconds, _, _ in good),
        first=tuple(heard.first - due for due, _, _, heard in good if heard.first is not None),
        between=tuple(h.between for _, _, _, h in good if h.between is not None),
        streamed=sum(stream for _, _, stream, _ in good),
        tokens=sum(heard.tokens for _, _, _, heard in good),
        failed=len(found) - len(good), busy_s=time.monotonic() - began, memory=served.memory(),
    )  # fmt: skip


def ask(served: Served, request: Request) -> Heard | None:
    """Puts one request; returns what was heard, None when there was no whole answer."""
    try:
        if request.stream:
            with closing(served.stream(request.path, request.body)) as chunks:
                return listen(chunks, time.monotonic)
        usage = served.post(request.path, request.body).get("usage") or {}
        return Heard(tokens=int(usage.get("completion_tokens", 0)))
    except (TemporaryError, json.JSONDecodeError, TypeError, ValueError, AttributeError):
        return None
