"""A window of a NATS JetStream stream → `messages.jsonl`: whole, or refused."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import IO, Annotated, Any, Literal

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictInt,
    model_validator,
)

from lockgate.core.digests import Hasher
from lockgate.core.errors import UsageError
from lockgate.derive.api import Advance, Work
from lockgate.derive.connections import NAME
from lockgate.derive.steps.data.outside.messages import Message, StreamState, opened, when
from lockgate.derive.steps.data.outside.taken import Taken, check_scheme

FILE = "messages.jsonl"
_SCHEMES = ("nats", "tls")
_SETTLED_S = 10.0
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")


def _a_time(value: Any) -> Any:
    if isinstance(value, str) and not _RFC3339.fullmatch(value):
        raise ValueError("it is no sequence number and no time as 2031-01-02T03:04:05Z")
    return value


Point = Annotated[
    Annotated[StrictInt, Field(ge=1)] | AwareDatetime, BeforeValidator(_a_time)
]  # fmt: skip


class StreamWindow(BaseModel):
    """The messages from `since` on, up to `until`, which is not in it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["nats"]
    connection: Annotated[str, Field(pattern=NAME)] = Field(
        description="of the environment variable LOCKGATE_CONNECTION_…: nats://…"
    )
    stream: Annotated[str, Field(pattern=r"^[^\s.*>/\\]{1,255}$")]
    subject: Annotated[str, Field(pattern=r"^[^\s]{1,500}$")] | None = Field(
        default=None, description="only messages of it, as orders.eu.>"
    )
    since: Point = Field(description="sequence number, or time, of the first message")
    until: Point = Field(description="of the first message that is not in it any more")
    gaps: Literal["refuse", "allow"] = Field(
        default="refuse", description="messages that the stream has lost in between"
    )
    most_messages: Annotated[int, Field(ge=1)] = Field(
        default=100_000_000, description="in the window"
    )
    most_bytes: Annotated[int, Field(ge=1)] = Field(
        default=100_000_000_000, description="of payloads"
    )

    @model_validator(mode="after")
    def _in_order(self) -> StreamWindow:
        if isinstance(self.since, int) != isinstance(self.until, int):
            raise ValueError("since and until are both sequence numbers, or both times")
        if self.since >= self.until:  # type: ignore[operator]
            raise ValueError("since comes before until, which is not in the window any more")
        return self

    def pinned(self) -> bool:
        """A stream only grows, and a window without gaps is whole: says yes, unless it has any."""
        return self.gaps == "refuse"

    def take(self, address: str, work: Work) -> Taken:
        """Writes `messages.jsonl`.

        Raises UsageError for a window that is not over, of which messages are gone, or with too
        much in it; DeniedError or TemporaryError when the server says no or can't be reached.
        """
        import asyncio

        check_scheme(address, _SCHEMES, self.connection)
        return asyncio.run(self._take(address, work))

    async def _take(self, address: str, work: Work) -> Taken:
        async with opened(address, self.stream) as stream:
            now = time.time()
            before = await stream.state()
            check_kept(before)
            first = await self._sequence(self.since, stream, before, now)
            end = await self._sequence(self.until, stream, before, now)
            window = Window(first=first, end=end, by_time=isinstance(self.since, datetime))
            missing = self._gaps(window, before)
            with (work.out / FILE).open("wb") as file:
                writer = _Writing(self, file, work, end - first)
                async for message in stream.messages(first, end, self.subject):
                    writer.add(message)
            after = await stream.state()
            if after.created != before.created or self._gaps(window, after) != missing:
                raise UsageError(
                    "messages of the window were removed while it was read",
                    hint="take a later window, or let the stream keep more",
                )
            whole = end - first - len(missing)
            if self.subject is None and writer.count != whole:
                raise UsageError(f"{writer.count} of {whole} messages of the window came",
                                 hint="ask again")  # fmt: skip
        return writer.taken(first, end, before, len(missing))

    async def _sequence(
        self, point: int | datetime, stream: Any, state: StreamState, now: float
    ) -> int:
        """Returns the sequence number that `point` means; raises UsageError for the future."""
        if isinstance(point, int):
            if point > state.last + 1:
                raise UsageError(
                    f"the window goes to message {point - 1}, and {self.stream} has "
                    f"{state.last} until now", hint="ask again when it has",
                )  # fmt: skip
            return point
        found: int | None = await stream.first_since(point)
        if found is not None:
            return found
        if (state.now or now) < point.timestamp() + _SETTLED_S:
            raise UsageError(
                f"the window is not over: it ends {point.isoformat()}, and a later message is not "
                "there yet", hint=f"ask again {_SETTLED_S:g} s after its end",
            )  # fmt: skip
        return state.last + 1

    def _gaps(self, window: Window, state: StreamState) -> set[int]:
        """Returns the missing messages of a window; raises UsageError when they are refused."""
        if window.first >= window.end:
            raise UsageError("the window has no messages", hint="look at since and until")
        if window.first < state.first:
            raise UsageError(
                f"{self.stream} begins at message {state.first} and has dropped those before; the "
                f"window begins at {window.first}", hint="take a later window",
            )  # fmt: skip
        if window.by_time and window.first == state.first > 1:
            raise UsageError(
                f"{self.stream} has dropped its messages before {state.first}, which may have been "
                "in the window", hint="take a later since, or sequence numbers",
            )  # fmt: skip
        if state.deleted is None:
            if self.gaps == "allow":
                return set()
            raise UsageError(
                f"{self.stream} has lost so many messages that it can't be told whether the "
                "window is whole", hint="gaps: allow takes it as it is",
            )  # fmt: skip
        missing = window.holds(state.deleted)
        if missing and self.gaps == "refuse":
            raise UsageError(
                f"{len(missing)} messages of the window are gone, the first is {min(missing)}",
                hint="gaps: allow takes what is left",
            )
        return {number for number in missing if window.first <= number}


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Sequence numbers from `first` to before `end`; `by_time`: found by the messages' times."""

    first: int
    end: int
    by_time: bool

    def holds(self, deleted: Iterable[int]) -> set[int]:
        """Returns which of `deleted` were in the window, or, by time, may have been."""
        gone = set(deleted)
        begin = self.first
        while self.by_time and begin - 1 in gone:
            begin -= 1
        return {number for number in gone if begin <= number < self.end}


def check_kept(state: StreamState) -> None:
    """Raises UsageError for a stream whose messages go when somebody has read them."""
    if state.retention not in ("", "limits"):
        raise UsageError(
            f"the stream keeps messages by {state.retention}: they go when they are read",
            hint="copy it from a stream with retention: limits, which may mirror this one",
        )


class _Writing:
    """Lines of JSON, counted and hashed."""

    def __init__(self, asked: StreamWindow, file: IO[bytes], work: Work, span: int) -> None:
        self._asked = asked
        self._file = file
        self._work = work
        self._span = span
        self._hasher = Hasher()
        self._first: Message | None = None
        self._last: Message | None = None
        self._bytes = self._binary = 0
        self.count = 0

    def add(self, message: Message) -> None:
        line = message.line()
        self._first = self._first or message
        self._last = message
        self.count += 1
        self._bytes += len(message.data)
        self._binary += message.text is None
        if self.count > self._asked.most_messages or self._bytes > self._asked.most_bytes:
            raise UsageError(
                f"the window has more than {self._asked.most_messages} messages or "
                f"{self._asked.most_bytes} bytes, at message {message.sequence}",
                hint="take a smaller one, or raise most_messages or most_bytes",
            )
        self._hasher.update(line)
        self._file.write(line)
        done = message.sequence - self._first.sequence + 1
        self._work.report(Advance(done=done, total=self._span, unit="messages"))

    def taken(self, first: int, end: int, state: StreamState, missing: int) -> Taken:
        if self._first is None or self._last is None:
            raise UsageError("the window has no messages", hint="look at subject")
        asked = self._asked
        about = {
            "stream": asked.stream, "created": state.created, "subject": asked.subject,
            "window": {"since": _said(asked.since), "until": _said(asked.until)},
            "sequences": {"first": first, "end": end}, "messages": self.count,
            "bytes": self._bytes, "binary": self._binary, "missing": missing,
            "times": {"first": when(self._first.time_ns), "last": when(self._last.time_ns)},
        }  # fmt: skip
        metrics = {"messages": float(self.count), "bytes": float(self._bytes),
                   "binary": float(self._binary), "missing": float(missing)}  # fmt: skip
        return Taken(about=about, digest=self._hasher.digest(), metrics=metrics)


def _said(point: int | datetime) -> int | str:
    return point if isinstance(point, int) else point.astimezone(UTC).isoformat()
