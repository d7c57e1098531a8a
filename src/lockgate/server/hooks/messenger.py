"""All hooks of a server: those that send, and those who may report."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

from lockgate.core.clock import Clock
from lockgate.core.errors import NotFoundError, PermanentError
from lockgate.ledger.api import Ledger
from lockgate.registry.service import Registry
from lockgate.server.api.views import short_names
from lockgate.server.hooks import report
from lockgate.server.hooks.message import trial_message
from lockgate.server.hooks.place import Place
from lockgate.server.hooks.post import Answer
from lockgate.server.hooks.sender import Sender, Source
from lockgate.server.hooks.signature import Secret, read_claim, verify
from lockgate.server.hooks.spec import load_hooks

_FOLDER = "hooks"


class Messenger:
    """Raises SpecError for mistakes in `hooks.yaml`, IntegrityError for a place that is damaged."""

    def __init__(self, home: Path, ledger: Ledger, registry: Registry, clock: Clock) -> None:
        self._settings = load_hooks(home)
        self._registry = registry
        self._clock = clock
        self._stranger = (Secret(key=secrets.token_bytes(32)),)
        source = Source(ledger=ledger, names=lambda: short_names(registry.models()), clock=clock)
        folder = home / _FOLDER
        if self._settings.spec.out:
            try:
                folder.mkdir(mode=0o700, exist_ok=True)
            except OSError as error:
                raise PermanentError(f"{folder} can't be made: {error.strerror}") from error
        draw = Random(secrets.randbits(64))  # noqa: S311 - it spreads tries, it hides nothing
        self._senders = {
            name: Sender(name, spec, self._settings.out_secrets[name], source, folder, draw)
            for name, spec in self._settings.spec.out.items()
        }

    def start(self) -> None:
        """Starts to send, each hook by itself."""
        for sender in self._senders.values():
            sender.start()

    def stop(self) -> None:
        """Ends all of it."""
        for sender in self._senders.values():
            sender.signal_stop()
        for sender in self._senders.values():
            sender.stop()

    def views(self) -> dict[str, Any]:
        """Returns every hook: `out` with how far it has come, `in` with what was reported last."""
        return {
            "out": [sender.view() for sender in self._senders.values()],
            "in": [
                {"name": name, "models": list(spec.models), "reports": self._reports(name)}
                for name, spec in self._settings.spec.in_.items()
            ],
        }

    def places(self) -> dict[str, Place]:
        """Returns how far each hook that goes out has come."""
        return {name: sender.place for name, sender in self._senders.items()}

    def _reports(self, hook: str) -> int:
        every = (v for model in self._registry.models().values() for v in model.versions)
        return sum(event.hook == hook for version in every for event in version.reported)

    def test(self, name: str, *, actor: str) -> Answer:
        """Sends one message of no event; raises NotFoundError for a hook that is not there."""
        sender = self._senders.get(name)
        if sender is None:
            known = ", ".join(self._senders) or "none"
            raise NotFoundError(f"no hook {name} goes out", hint=f"hooks.yaml has: {known}")
        return sender.send(trial_message(name, actor, self._clock.now()))

    def reported(self, name: str, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
        """Keeps a report that came in by the hook `name`; see `report.record` and `verify`.

        Whether a hook of that name exists is not told to who can't sign for it.
        """
        claim = read_claim(headers, self._clock.now())
        verify(self._settings.in_secrets.get(name, self._stranger), claim, body)
        spec = self._settings.spec.in_[name]
        return report.record(name, spec, claim.message, body, self._registry)

    def expects(self, headers: Mapping[str, str]) -> None:
        """Raises DeniedError for headers that no message has, before its body is read."""
        read_claim(headers, self._clock.now())
