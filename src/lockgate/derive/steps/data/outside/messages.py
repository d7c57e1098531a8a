"""What is said to a JetStream server: a stream's state, and its messages in order, in parts.

The requests are those of JetStream's wire API (`$JS.API.…`), so that a part is bounded in bytes. A
consumer without acknowledgements is made for the time of reading, and removed; it changes nothing
of the stream.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from lockgate.core.errors import (
    DeniedError,
    LockgateError,
    PermanentError,
    TemporaryError,
    UsageError,
)
from lockgate.derive.connections import options, shown, who
from lockgate.derive.steps.data.outside.taken import missing_package

_API = "$JS.API"
_WAIT_S = 30.0
_PART_BYTES = 1 << 23
_PART_MESSAGES = 4096
_MOST_DELETED = 100_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamState:
    """A stream now: its first and last sequence numbers, those deleted in between.

    `deleted`: None when they are too many to be told. `now`: the server's clock, seconds since
    1970, where it says so.
    """

    first: int
    last: int
    deleted: tuple[int, ...] | None
    created: str
    retention: str
    now: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message: its number, nanoseconds since 1970, subject, headers, payload.

    `text` is the payload where it is UTF-8.
    """

    sequence: int
    time_ns: int
    subject: str
    headers: dict[str, str] | None
    data: bytes

    @property
    def text(self) -> str | None:
        """The payload as text, None when it is no UTF-8."""
        try:
            return self.data.decode()
        except UnicodeDecodeError:
            return None

    def line(self) -> bytes:
        """Returns the message as a line of JSON; the same names in every one."""
        text = self.text
        headers = json.dumps(self.headers, sort_keys=True) if self.headers else None
        body = {
            "sequence": self.sequence, "time": when(self.time_ns), "subject": self.subject,
            "headers": headers, "data": text,
            "base64": base64.b64encode(self.data).decode() if text is None else None,
        }  # fmt: skip
        return json.dumps(body, ensure_ascii=True).encode() + b"\n"


def when(nanoseconds: int) -> str:
    """Returns a time in RFC 3339, to the microsecond, in UTC."""
    at = _EPOCH + timedelta(microseconds=nanoseconds // 1000)
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")


@asynccontextmanager
async def opened(address: str, stream: str) -> AsyncIterator[Stream]:
    """Gives a stream over a connection of its own; raises as `Stream` does."""
    try:
        import nats
        from nats.aio.client import Client
    except ImportError as error:
        raise missing_package("nats-py") from error
    more, where = _credentials(address), shown(address)
    said: list[str] = []

    async def hear(error: Exception) -> None:
        said.append(str(error))

    client = Client()
    try:
        await client.connect(
            where, connect_timeout=10, allow_reconnect=False, max_reconnect_attempts=1,
            reconnect_time_wait=1, error_cb=hear, name="lockgate snapshot", **more,
        )  # fmt: skip
    except ImportError:
        raise missing_package("nkeys") from None
    except (nats.errors.Error, OSError, ValueError, TimeoutError) as error:
        with suppress(Exception):  # it may be half open
            await client.close()
        raise _refused(where, " ".join([str(error) or type(error).__name__, *said])) from None
    try:
        yield Stream(client, stream)
    except (nats.errors.Error, OSError, TimeoutError) as error:
        text = str(error) or type(error).__name__
        raise TemporaryError(f"{where} does not answer: {text}") from None
    finally:
        with suppress(nats.errors.Error, OSError, TimeoutError):
            await client.close()


def _credentials(address: str) -> dict[str, Any]:
    """Returns what the client is told: nats-py itself does not decode an address."""
    user, password = who(address)
    found: dict[str, Any] = {}
    if password is not None:
        found |= {"user": user, "password": password}
    elif user:
        found |= {"token": user}
    given = options(address)
    if "creds" in given:
        found["user_credentials"] = given["creds"]
    if "tls_ca" in given:
        import ssl

        found["tls"] = ssl.create_default_context(cafile=given["tls_ca"])
    return found


def _refused(where: str, said: str) -> LockgateError:
    if "uthorization" in said or "uthentication" in said or "nonce" in said:
        return DeniedError(f"{where} refuses this user: {said}", hint="correct the connection")
    return TemporaryError(f"{where} can't be reached: {said}")


class Stream:
    """One stream. Methods raise UsageError for what the server refuses, nats' errors otherwise."""

    def __init__(self, client: Any, name: str) -> None:
        self._client = client
        self._name = name

    async def state(self) -> StreamState:
        """Returns what the stream is now."""
        found = await self._ask("STREAM.INFO", {})
        state = found["state"]
        count = int(state.get("num_deleted") or 0)
        deleted: tuple[int, ...] | None = ()
        if count > _MOST_DELETED:
            deleted = None
        elif count:
            again = await self._ask("STREAM.INFO", {"deleted_details": True})
            deleted = tuple(again["state"].get("deleted") or ())
        now = datetime.fromisoformat(_micro(found["ts"])).timestamp() if "ts" in found else None
        return StreamState(
            first=int(state["first_seq"]), last=int(state["last_seq"]), deleted=deleted,
            created=str(found["created"]), now=now,
            retention=str(found["config"].get("retention", "")),
        )  # fmt: skip

    async def first_since(self, at: datetime) -> int | None:
        """Returns the number of the first message at or after a time; None when there is none."""
        start = {"deliver_policy": "by_start_time", "opt_start_time": at.isoformat()}
        async for message in self._read(start, None, most=1):
            return message.sequence
        return None

    async def messages(self, first: int, end: int, subject: str | None) -> AsyncIterator[Message]:
        """Yields the messages with numbers from `first` to before `end`, in order."""
        start = {"deliver_policy": "by_start_sequence", "opt_start_seq": first}
        last = first - 1
        async for message in self._read(start, subject, most=_PART_MESSAGES):
            if message.sequence >= end:
                return
            if message.sequence <= last:
                raise TemporaryError(f"message {message.sequence} came after {last}")
            last = message.sequence
            yield message

    async def _read(
        self, start: dict[str, Any], subject: str | None, *, most: int
    ) -> AsyncIterator[Message]:
        """Yields messages as long as there are any."""
        config = start | {"ack_policy": "none", "replay_policy": "instant", "mem_storage": True,
                          "num_replicas": 1, "inactive_threshold": 60 * 10**9}  # fmt: skip
        if subject is not None:
            config["filter_subject"] = subject
        made = await self._ask("CONSUMER.CREATE", {"stream_name": self._name, "config": config})
        consumer, pending = str(made["name"]), int(made["num_pending"])
        inbox = self._client.new_inbox()
        subscription = await self._client.subscribe(inbox, pending_msgs_limit=2 * most + 16)
        try:
            while pending:
                await self._request(consumer, inbox, most)
                got = 0
                while got < most:
                    raw = await subscription.next_msg(timeout=_WAIT_S)
                    if not raw.reply:
                        _check_status(raw)
                        break
                    message, pending = _message(raw)
                    got += 1
                    yield message
        finally:
            await subscription.unsubscribe()
            with suppress(TimeoutError, asyncio.CancelledError, LockgateError):
                await self._ask("CONSUMER.DELETE", {}, consumer)

    async def _request(self, consumer: str, inbox: str, most: int) -> None:
        room = max(_PART_BYTES, 2 * int(self._client.max_payload))
        body = {"batch": most, "max_bytes": room, "no_wait": True}
        subject = f"{_API}.CONSUMER.MSG.NEXT.{self._name}.{consumer}"
        await self._client.publish(subject, json.dumps(body).encode(), inbox)

    async def _ask(self, verb: str, body: dict[str, Any], *more: str) -> dict[str, Any]:
        from nats.errors import NoRespondersError

        subject = ".".join([_API, verb, self._name, *more])
        try:
            answer = await self._client.request(
                subject, json.dumps(body).encode() if body else b"", timeout=_WAIT_S
            )
        except NoRespondersError:
            raise PermanentError("the server has no JetStream for this user") from None
        found: dict[str, Any] = json.loads(answer.data)
        if "error" in found:
            text = str(found["error"].get("description", "it says no"))[:300]
            raise UsageError(f"the stream {self._name}: {text}", hint="look at stream and subject")
        return found


def _micro(text: str) -> str:
    """Returns an RFC 3339 time with at most six digits of a second."""
    head, dot, tail = text.removesuffix("Z").partition(".")
    return f"{head}{dot}{tail[:6].ljust(6, '0') if dot else ''}+00:00"


def _check_status(raw: Any) -> None:
    """Passes over what ends a part; raises TemporaryError for what ends reading."""
    code = str((raw.headers or {}).get("Status", ""))
    said = str((raw.headers or {}).get("Description", ""))
    if code in ("404", "408") or (code == "409" and "MaxBytes" in said):
        return
    raise TemporaryError(f"the server ended reading: {code} {said}")


def _message(raw: Any) -> tuple[Message, int]:
    """Returns a message, and how many wait behind it, from the subject for acknowledgements.

    That is `$JS.ACK.[domain.account.]stream.consumer.delivered.sequence.….time.pending`.
    """
    parts = raw.reply.split(".")
    if len(parts) > 9:
        parts = parts[2:]
    message = Message(
        sequence=int(parts[5]), time_ns=int(parts[7]), subject=raw.subject, headers=raw.headers,
        data=raw.data,
    )  # fmt: skip
    return message, int(parts[8])
