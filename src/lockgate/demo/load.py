"""Steady load on a gateway: open loop, seeded, every answer checked against the known truth."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx2

_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One request as its caller saw it.

    `version` is the digest that the answer named (empty: none did); times in seconds, `at` since
    the epoch. `right` is None where nothing was answered. `fault`: empty, `version` (the version
    itself answered an error) or `path` (refused, cut or lost on the way).
    """

    at: float
    model: str
    version: str
    status: int
    duration_s: float
    stream: bool
    right: bool | None
    fault: str = ""
    detail: str = ""


class Caller(Protocol):
    """Knows how to ask one model a question whose answer is known."""

    async def ask(self, client: httpx2.AsyncClient, draw: random.Random) -> Seen:
        """Sends one request and checks the answer."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatCaller:
    """Asks a language model; half of the requests are streams."""

    url: str
    model: str
    questions: Sequence[Mapping[str, str]]
    streams: float = 0.5

    async def ask(self, client: httpx2.AsyncClient, draw: random.Random) -> Seen:
        """See `Caller.ask`."""
        item = draw.choice(self.questions)
        stream = draw.random() < self.streams
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": item["question"]}],
            "max_tokens": 48,
            "temperature": 0,
            "stream": stream,
        }
        if stream:
            body["stream_options"] = {"include_usage": True}
        return await _timed(self.model, stream, self._send(client, body, item["answer"]))

    async def _send(
        self, client: httpx2.AsyncClient, body: Mapping[str, Any], answer: str
    ) -> tuple[int, str, bool | None, str]:
        path = f"{self.url}/v1/chat/completions"
        async with client.stream("POST", path, json=body) as reply:
            if reply.status_code != 200:
                return reply.status_code, "", None, (await reply.aread()).decode()[:200]
            if not body["stream"]:
                whole = json.loads(await reply.aread())
                said = whole["choices"][0]["message"]["content"]
                return 200, whole["system_fingerprint"], said.strip() == answer, ""
            said, version, done = "", "", False
            async for line in reply.aiter_lines():
                if line == "data: [DONE]":
                    done = True
                elif line.startswith("data: "):
                    chunk = json.loads(line[6:])
                    version = chunk.get("system_fingerprint") or version
                    for choice in chunk["choices"]:
                        said += choice["delta"].get("content") or ""
            if not done:
                return 0, version, None, "the stream ended without [DONE]"
            return 200, version, said.strip() == answer, ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditCaller:
    """Asks a credit-scoring model for one application's risk."""

    url: str
    model: str
    applications: Sequence[Mapping[str, Any]]

    async def ask(self, client: httpx2.AsyncClient, draw: random.Random) -> Seen:
        """See `Caller.ask`."""
        row = draw.choice(self.applications)
        features = row["features"]  # null: the value is missing
        tensor = {"name": "features", "datatype": "FP32", "shape": [1, len(features)],
                  "data": features}  # fmt: skip
        body = {"inputs": [tensor]}
        return await _timed(self.model, False, self._send(client, body, bool(row["defaulted"])))

    async def _send(
        self, client: httpx2.AsyncClient, body: Mapping[str, Any], defaulted: bool
    ) -> tuple[int, str, bool | None, str]:
        path = f"{self.url}/{self.model}/v2/models/{self.model}/infer"
        reply = await client.post(path, json=body)
        if reply.status_code != 200:
            return reply.status_code, "", None, reply.text[:200]
        answer = reply.json()
        risky = float(answer["outputs"][0]["data"][0]) > 0.5
        return 200, str(answer.get("model_version", "")), risky == defaulted, ""


async def _timed(
    model: str, stream: bool, sent: Coroutine[Any, Any, tuple[int, str, bool | None, str]]
) -> Seen:
    at, start = time.time(), time.perf_counter()
    try:
        status, version, right, detail = await sent
    except (httpx2.HTTPError, ValueError, KeyError) as error:
        status, version, right, detail = 0, "", None, f"{type(error).__name__}: {error}"
    fault = "" if status == 200 else ("version" if status == 500 else "path")
    return Seen(
        at=at, model=model, version=version, status=status, stream=stream, right=right,
        duration_s=time.perf_counter() - start, fault=fault, detail=detail,
    )  # fmt: skip


class Load:
    """Sends requests at a fixed rate from a thread of its own until stopped."""

    def __init__(self, caller: Caller, *, rate: float, seed: int) -> None:
        self.seen: list[Seen] = []
        self._caller = caller
        self._rate = rate
        self._draw = random.Random(seed)  # noqa: S311 - which question, not a secret
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def start(self) -> None:
        """Begins to send."""
        self._thread.start()

    def stop(self) -> Sequence[Seen]:
        """Stops sending, waits for the answers that are due, and returns all that was seen."""
        self._stop.set()
        self._thread.join()
        return self.seen

    async def _run(self) -> None:
        limits = httpx2.Limits(max_connections=200, max_keepalive_connections=200)
        async with httpx2.AsyncClient(timeout=_TIMEOUT_S, limits=limits, trust_env=False) as client:
            pending: set[asyncio.Task[None]] = set()
            begin, sent = time.perf_counter(), 0
            while not self._stop.is_set():
                task = asyncio.create_task(self._one(client))
                pending.add(task)
                task.add_done_callback(pending.discard)
                sent += 1
                await asyncio.sleep(max(0.0, begin + sent / self._rate - time.perf_counter()))
            if pending:
                await asyncio.wait(pending)

    async def _one(self, client: httpx2.AsyncClient) -> None:
        self.seen.append(await self._caller.ask(client, self._draw))


def read_lines(path: Path, convert: Callable[[str], Any] = json.loads) -> list[Any]:
    """Returns the values of a file of JSON lines."""
    return [convert(line) for line in path.read_text("utf-8").splitlines() if line]
