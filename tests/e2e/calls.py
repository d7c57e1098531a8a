"""A lean HTTP/1.1 caller: keep-alive, Content-Length and chunked; nothing retried or hidden."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from lockgate.demo.load import read_lines

MODELS = Path(__file__).parents[2] / "src/lockgate/demo/models"

HEAD = "content-type: application/json\r\ncontent-length: {}\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Call:
    """One request: status 0 means that the connection failed or the answer was cut."""

    at: float
    status: int
    stream: bool
    complete: bool
    detail: str = ""


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, bytes, bool]:
    """Returns status, body and whether the connection may be used again."""
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    status = int(lines[0].split(" ")[1])
    headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while size := int((await reader.readline()).split(b";")[0], 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readexactly(2)
    else:
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    return status, body, headers.get("connection", "") != "close"


def chat(draw: random.Random, questions: Sequence[Any], model: str) -> tuple[str, bytes, bool]:
    stream = draw.random() < 0.5
    messages = [{"role": "user", "content": draw.choice(questions)["question"]}]
    body = {"model": model, "temperature": 0, "max_tokens": 40, "stream": stream,
            "messages": messages}  # fmt: skip
    return "/v1/chat/completions", json.dumps(body).encode(), stream


def credit(draw: random.Random, rows: Sequence[Any], model: str) -> tuple[str, bytes, bool]:
    features = [0.0 if value is None else value for value in draw.choice(rows)["features"]]
    tensor = {"name": "features", "datatype": "FP32", "shape": [1, 10], "data": features}
    return f"/{model}/v2/models/{model}/infer", json.dumps({"inputs": [tensor]}).encode(), False


@dataclass
class Callers:
    """Closed-loop callers on one gateway, each with its own connection, in one thread."""

    address: str
    kinds: Sequence[Callable[[random.Random], tuple[str, bytes, bool]]]
    pause_s: float = 0.0
    calls: list[Call] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)

    @property
    def failed(self) -> list[Call]:
        return [call for call in self.calls if call.status != 200 or not call.complete]

    def wait_for(self, count: int, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while len(self.calls) < count:
            assert time.monotonic() < deadline, f"only {len(self.calls)} calls"
            time.sleep(0.05)

    def more(self, count: int) -> None:
        """Waits for `count` more calls."""
        self.wait_for(len(self.calls) + count)

    async def _run(self) -> None:
        await asyncio.gather(*(self._caller(i, kind) for i, kind in enumerate(self.kinds)))

    async def _caller(
        self, seed: int, kind: Callable[[random.Random], tuple[str, bytes, bool]]
    ) -> None:
        draw = random.Random(seed)
        where = urlsplit(self.address)
        connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while not self._stop.is_set():
            path, body, stream = kind(draw)
            at = time.time()
            try:
                if connection is None:
                    connection = await asyncio.open_connection(where.hostname, where.port)
                reader, writer = connection
                head = f"POST {path} HTTP/1.1\r\nhost: {where.netloc}\r\n" + HEAD
                writer.write(head.format(len(body)).encode() + body)
                status, answer, keep = await asyncio.wait_for(read_answer(reader), 60)
                complete = not stream or answer.rstrip().endswith(b"[DONE]")
                detail = (
                    "" if status == 200 and complete else answer[-200:].decode("utf-8", "replace")
                )
                self.calls.append(Call(at, status, stream, complete, detail))
            except (OSError, EOFError, ValueError, TimeoutError) as error:
                self.calls.append(Call(at, 0, stream, False, f"{type(error).__name__}: {error}"))
                keep = False
                await asyncio.sleep(0.05)
            if not keep and connection is not None:
                connection[1].close()
                connection = None
            if self.pause_s:
                await asyncio.sleep(self.pause_s)
        if connection is not None:
            connection[1].close()


def chat_callers(count: int, model: str = "acme/chat") -> list[Any]:
    questions = read_lines(MODELS / "chat-questions.jsonl")
    return [lambda draw: chat(draw, questions, model)] * count


def credit_callers(count: int, model: str = "acme/credit") -> list[Any]:
    rows = read_lines(MODELS / "credit-applications.jsonl")
    return [lambda draw: credit(draw, rows, model)] * count
