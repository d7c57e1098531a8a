"""One hook's thread: reads the ledger from its place on, and sends in order, at least once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlsplit

from lockgate.core.clock import Clock, iso
from lockgate.core.events import kind_of
from lockgate.ledger.api import Ledger, Recorded
from lockgate.server.hooks.message import Message, message_of, model_finder
from lockgate.server.hooks.place import Place, read_place, write_place
from lockgate.server.hooks.post import Answer, post, receiver
from lockgate.server.hooks.signature import Secret, headers
from lockgate.server.hooks.spec import OutSpec, wanted

_PAGE = 50
_POLL_S = 0.5
_FIRST_S = 1.0
_LONGEST_S = 300.0
_SKIP_SAVED = 500
_COUNTED = 1000
_PATIENCE_S = 1.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What senders read: the ledger, short names of versions, the time."""

    ledger: Ledger
    names: Callable[[], Mapping[str, str]]
    clock: Clock


def pause(attempts: int, draw: Random) -> float:
    """Returns the seconds before the next try: doubled each time, five minutes at most.

    A random half of it is taken off, so that hooks of many servers do not come together.
    """
    whole = min(_LONGEST_S, _FIRST_S * 2.0 ** min(attempts - 1, 30))
    return whole * (0.5 + draw.random() / 2)


class Sender:
    """Sends what one hook wants. Raises IntegrityError when its place can't be read."""

    def __init__(
        self, name: str, spec: OutSpec, secrets: Sequence[Secret], source: Source, folder: Path,
        draw: Random,
    ) -> None:  # fmt: skip
        self.name = name
        self._spec = spec
        self._secrets = secrets
        self._source = source
        self._path = folder / f"{name}.json"
        self._draw = draw
        self._to = receiver(spec.url, spec.timeout)
        self._model_of = model_finder(source.ledger)
        self._stop = threading.Event()
        self._guard = threading.Lock()
        self._closed = False
        self._trouble = ""
        self._place = self._begin()
        self._saved = self._place.position
        self._thread = threading.Thread(target=self._run, name=f"hook-{name}", daemon=True)

    def _begin(self) -> Place:
        """Returns the place to go on from; a hook that is new begins with the next event."""
        now, head = self._source.clock.now(), self._source.ledger.head().position
        place = read_place(self._path)
        if place is None or place.position > head:  # a ledger from a backup may be shorter
            place = replace(place or Place(position=head), position=head)
            write_place(self._path, place)
        return place.resumed(now)

    def start(self) -> None:
        """Starts to send."""
        self._thread.start()

    def signal_stop(self) -> None:
        """Asks the thread to end, without waiting for it."""
        self._stop.set()

    def stop(self) -> None:
        """Ends; a try that is under way may be repeated by the next server."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(_PATIENCE_S)
        with self._guard:
            if not self._closed and self._place.position != self._saved:
                write_place(self._path, self._place)
            self._closed = True

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                rest = self._step()
                self._trouble = ""
            except Exception as error:  # noqa: BLE001 - one bad look must not end the hook
                _log.exception("the hook %s can't go on; it tries again", self.name)
                self._trouble = f"{type(error).__name__}: {error}"
                rest = 10 * _POLL_S
            self._stop.wait(rest)

    def _step(self) -> float:
        """Sends what is due; returns the seconds until there is something to do again."""
        page = self._source.ledger.read(after=self._place.position, limit=_PAGE)
        for recorded in page:
            if self._stop.is_set():
                return 0.0
            if not self._wants(recorded):
                self._skip(recorded.position)
                continue
            message = message_of(recorded, self._model_of(recorded), self._source.names())
            rest = self._settle(recorded, self.send(message))
            if rest:
                return rest
        return 0.0 if len(page) == _PAGE else _POLL_S

    def _wants(self, recorded: Recorded) -> bool:
        return wanted(self._spec.events, kind_of(recorded.event)) and wanted(
            self._spec.models, self._model_of(recorded)
        )

    def send(self, message: Message) -> Answer:
        """Tries once to hand over `message`, signed now."""
        now = int(self._source.clock.now())
        signed = headers(self._secrets, message.id, now, message.body)
        return post(self._to, signed, message.body)

    def _skip(self, position: int) -> None:
        with self._guard:
            self._place = replace(self._place, position=position)
        if position - self._saved >= _SKIP_SAVED:
            self._save(self._place)

    def _settle(self, recorded: Recorded, answer: Answer) -> float:
        """Notes how a try went; returns the seconds to wait before the next one."""
        now = self._source.clock.now()
        if answer.ok:
            self._save(self._place.succeeded(recorded.position, now))
            return 0.0
        place = self._place.failed(answer.said, now)
        if place.lost(now - recorded.at, self._spec.give_up_after, now):
            _log.warning("the hook %s gives up event %d: %s", self.name, recorded.position,
                         answer.said)  # fmt: skip
            self._save(place.gave_up(recorded.position))
            return _FIRST_S
        self._save(place)
        return max(pause(place.attempts, self._draw), answer.retry_in)

    def _save(self, place: Place) -> None:
        with self._guard:
            if self._closed:
                return
            self._place = place
            write_place(self._path, place)
            self._saved = place.position

    @property
    def place(self) -> Place:
        """How far it has come."""
        return self._place

    def view(self) -> dict[str, Any]:
        """Returns what people want to know; of the address only its host, for a path may be secret.

        `waiting` counts the events to be sent, a thousand events ahead at most.
        """
        place = self._place
        ahead = self._source.ledger.read(after=place.position, limit=_COUNTED)
        where = urlsplit(self._spec.url)
        return {
            "name": self.name,
            "to": f"{where.scheme}://{where.netloc}",
            "events": list(self._spec.events),
            "models": list(self._spec.models),
            "position": place.position,
            "waiting": sum(self._wants(recorded) for recorded in ahead),
            "delivered": place.delivered,
            "delivered_at": _iso(place.delivered_at),
            "attempts": place.attempts,
            "failing_since": _iso(place.failing_since),
            "error": self._trouble or place.error,
            "given_up": place.given_up,
            "given_up_last": place.given_up_last,
        }


def _iso(at: float | None) -> str | None:
    return None if at is None else iso(at)
