"""One thread that decodes for many requests: a token each, in turn, so that none waits for all.

A model's forward pass keeps the cores busy, so that several decoding threads would only fight
over them. One thread that goes round the running requests is fair by construction, keeps the
event loop free, and needs no lock around the model.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from lockgate.fleet.runtimes.serve.exchange import Refused, busy, fault
from lockgate.fleet.runtimes.serve.scored import Scored

Reason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to choose tokens, and when to stop. `temperature` 0 is greedy; `seed` None is random."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    score: int | None = None
    """How many of the likeliest tokens to tell at each place; nothing is decoded then."""


class Decoding(Protocol):
    """One answer under way; used by the decoding thread alone."""

    def step(self) -> tuple[str, bool]:
        """Decodes one token; returns the text it completes, and True when it ends the answer."""
        ...


class Backend(Protocol):
    """A loaded language model."""

    @property
    def context(self) -> int:
        """The most tokens that prompt and answer may have together."""
        ...

    @property
    def vocabulary(self) -> int:
        """How many different tokens there are."""
        ...

    @property
    def temperature(self) -> float:
        """The temperature for requests that name none."""
        ...

    def render(self, messages: Sequence[dict[str, str]]) -> str:
        """Returns the prompt for a chat; raises Refused when the template can't make one."""
        ...

    def encode(self, text: str) -> list[int]:
        """Returns the tokens of `text`."""
        ...

    def start(self, prompt: Sequence[int], sampling: Sampling) -> Decoding | Scored:
        """Reads the prompt and returns the decoding of its answer.

        Where the sampling has `score`: how likely the prompt is, with one more token if
        `max_tokens` is 1.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One token's worth of an answer. `at` is a monotonic time in seconds."""

    text: str
    at: float
    reason: Reason | None = None
    refused: Refused | None = None
    scored: Scored | None = None


class StopFilter:
    """Cuts an answer at the first stop text, also when that comes in several pieces."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def feed(self, text: str) -> tuple[str, bool]:
        """Takes more text; returns what may be sent now, and True when a stop text came."""
        if not self._stops:
            return text, False
        whole = self._held + text
        found = [at for at in (whole.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self._held = ""
            return whole[: min(found)], True
        keep = max(_overlap(whole, stop) for stop in self._stops)
        self._held = whole[len(whole) - keep :]
        return whole[: len(whole) - keep], False

    def rest(self) -> str:
        """Returns the text still held back, for an answer that ends without a stop text."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Returns how many characters at the end of `text` could begin `stop`."""
    most = min(len(text), len(stop) - 1)
    return next((size for size in range(most, 0, -1) if text.endswith(stop[:size])), 0)


class Ticket:
    """One request's place in the engine; read it on the event loop that made it."""

    def __init__(self, prompt: Sequence[int], sampling: Sampling) -> None:
        self.prompt = prompt
        self.sampling = sampling
        self.loop = asyncio.get_running_loop()
        self.cancelled = False
        self._arrived: list[Piece] = []
        self._news = asyncio.Event()

    def cancel(self) -> None:
        """Says that nobody waits for the answer any more; decoding stops within one round."""
        self.cancelled = True

    def put(self, piece: Piece) -> None:
        """Adds a piece; on the event loop."""
        self._arrived.append(piece)
        self._news.set()

    async def pieces(self) -> AsyncIterator[list[Piece]]:
        """Yields all that has come since the last look, until the answer ends."""
        while True:
            await self._news.wait()
            self._news.clear()
            batch, self._arrived = self._arrived, []
            yield batch
            if batch[-1].reason or batch[-1].refused:
                return


class _Running:
    """A ticket that decodes: its decoding, its stop filter and its count of tokens."""

    def __init__(self, ticket: Ticket, decoding: Decoding) -> None:
        self.ticket = ticket
        self._decoding = decoding
        self._filter = StopFilter(ticket.sampling.stop)
        self._count = 0

    def step(self) -> Piece:
        """Decodes one token."""
        text, ended = self._decoding.step()
        self._count += 1
        text, stopped = self._filter.feed(text)
        reason: Reason | None = "stop" if ended or stopped else None
        if reason is None and self._count >= self.ticket.sampling.max_tokens:
            reason = "length"
        if reason and not stopped:
            text += self._filter.rest()
        return Piece(text=text, at=time.monotonic(), reason=reason)


class Engine:
    """Decodes at most `slots` answers at a time and keeps at most `queue` more waiting."""

    def __init__(self, backend: Backend, *, slots: int, queue: int) -> None:
        self.backend = backend
        self._slots = slots
        self._queue = queue
        self._waiting: deque[Ticket] = deque()
        self._running: list[_Running] = []
        self._closed = False
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="decode", daemon=True)

    def open(self) -> None:
        """Starts the decoding thread."""
        self._thread.start()

    def close(self) -> None:
        """Ends the decoding thread; what still decodes is dropped."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    @property
    def waiting(self) -> int:
        """How many requests have no slot yet."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """How many requests decode."""
        return len(self._running)

    def submit(self, ticket: Ticket) -> None:
        """Puts `ticket` in the queue; raises Refused (503) when the queue is full."""
        with self._wake:
            if len(self._waiting) >= self._queue:
                raise busy(f"{self._queue} requests wait already; try again shortly")
            self._waiting.append(ticket)
            self._wake.notify()

    def _work(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._closed or self._waiting or self._running)
                if self._closed:
                    return
                free = self._slots - len(self._running)
                fresh = [self._waiting.popleft() for _ in range(min(free, len(self._waiting)))]
            self._round(fresh)

    def _round(self, fresh: Sequence[Ticket]) -> None:
        news: list[tuple[Ticket, Piece]] = []
        for ticket in fresh:
            if not ticket.cancelled:
                self._start(ticket, news)
        for running in list(self._running):
            if running.ticket.cancelled:
                self._running.remove(running)
                continue
            piece = _guarded(running)
            if piece.reason or piece.refused:
                self._running.remove(running)
            news.append((running.ticket, piece))
        if news:
            _deliver(news)

    def _start(self, ticket: Ticket, news: list[tuple[Ticket, Piece]]) -> None:
        try:
            begun = self.backend.start(ticket.prompt, ticket.sampling)
        except Exception as error:  # noqa: BLE001 - any fault of a model ends this request alone
            news.append((ticket, _fault(error)))
            return
        if isinstance(begun, Scored):
            at = time.monotonic()
            news.append((ticket, Piece(text="", at=at, reason="length", scored=begun)))
        else:
            self._running.append(_Running(ticket, begun))


def _guarded(running: _Running) -> Piece:
    try:
        return running.step()
    except Exception as error:  # noqa: BLE001 - any fault of a model ends this request alone
        return _fault(error)


def _fault(error: Exception) -> Piece:
    refused = error if isinstance(error, Refused) else fault(f"the model failed: {error}")
    return Piece(text="", at=time.monotonic(), refused=refused)


def _deliver(news: Sequence[tuple[Ticket, Piece]]) -> None:
    """Hands over a whole round with one wake-up of the event loop."""

    def put() -> None:
        for ticket, piece in news:
            ticket.put(piece)

    news[0][0].loop.call_soon_threadsafe(put)
