"""An event of the ledger as a message: the same id and bytes each time it is sent."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lockgate.core.clock import iso
from lockgate.core.digests import digest_of_value, hex_of
from lockgate.core.events import kind_of
from lockgate.ledger.api import Ledger, Recorded
from lockgate.server.api.views import event_view

FORMAT = 1
_MAX_DATA = 64 * 1024
_MAX_TEXT = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What travels: `id` names it for receivers that drop doubles."""

    id: str
    body: bytes


def message_of(recorded: Recorded, model: str | None, names: Mapping[str, str]) -> Message:
    """Returns the message for an event; `names` are short names of versions, for its sentence.

    An event with more than 64 KiB of fields goes without them (`data` is null): the receiver
    finds them in the audit, by position.
    """
    view = event_view(recorded, names)
    whole = len(json.dumps(view["body"])) <= _MAX_DATA
    body = {
        "type": view["kind"],
        "timestamp": view["at"],
        "format": FORMAT,
        "position": recorded.position,
        "stream": recorded.stream,
        "version": recorded.version,
        "actor": recorded.actor,
        "model": model,
        "text": view["text"][:_MAX_TEXT],
        "data": view["body"] if whole else None,
    }
    return Message(id=_id(recorded), body=_encode(body))


def trial_message(hook: str, actor: str, now: float) -> Message:
    """Returns the message of `lockgate hooks test`: of no event, and with an id of its own."""
    body = {
        "type": "Test", "timestamp": iso(now), "format": FORMAT, "actor": actor,
        "text": f"a test of the hook {hook}", "data": {},
    }  # fmt: skip
    return Message(id=f"test_{hex_of(digest_of_value([hook, now]))[:24]}", body=_encode(body))


def _id(recorded: Recorded) -> str:
    """Returns an id for the event alone: after a restore another one may have its position."""
    envelope = [
        recorded.position, recorded.stream, recorded.version, recorded.at, recorded.actor,
        kind_of(recorded.event),
    ]  # fmt: skip
    return f"evt_{recorded.position}_{hex_of(digest_of_value(envelope))[:16]}"


def _encode(body: Mapping[str, object]) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode(
        "utf-8", errors="replace"
    )


def model_finder(ledger: Ledger) -> Callable[[Recorded], str | None]:
    """Returns a function that names the model an event is about; None when it is about none."""
    opened: dict[str, str | None] = {}

    def model_of(recorded: Recorded) -> str | None:
        named = getattr(recorded.event, "model", None)
        if isinstance(named, str):
            return named
        kind, _, rest = recorded.stream.partition("/")
        if kind == "model":
            return rest
        if kind == "route":
            return rest.rpartition("@")[0]
        if recorded.stream not in opened:
            first = ledger.read(stream=recorded.stream, limit=1)
            found = getattr(first[0].event, "model", None) if first else None
            opened[recorded.stream] = found if isinstance(found, str) else None
        return opened[recorded.stream]

    return model_of
