"""Senders over a real receiver: in order, at least once, bounded, and each by itself."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from lockgate.core.clock import ManualClock, SystemClock
from lockgate.core.errors import IntegrityError
from lockgate.core.events import AliasMoved, Event, RouteBlocked, VersionPublished, event_classes
from lockgate.ledger.memory import MemoryLedger
from lockgate.server.hooks.place import Place, read_place, write_place
from lockgate.server.hooks.sender import Sender, Source, pause
from lockgate.server.hooks.signature import Secret
from lockgate.server.hooks.spec import OutSpec

from .receiver import Handler, Receiver

SECRET = Secret(key=b"k" * 32)


class World:
    """A ledger, and the senders that a test makes over it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ledger = MemoryLedger()
        self.clock: Any = SystemClock()
        self.senders: list[Sender] = []

    def add(self, count: int, model: str = "acme/chat") -> None:
        """Moves an alias of `model` so many times."""
        stream = f"model/{model}"
        for _ in range(count):
            before = len(self.ledger.read(stream=stream, limit=10_000))
            event = AliasMoved(model=model, alias="a", number=before + 1, digest="blake3:0")
            self.append(stream, before, event)

    def append(self, stream: str, before: int, event: Event) -> None:
        self.ledger.append(stream, before, [event], actor="tester", at=self.clock.now())

    def sender(self, url: str, name: str = "ci", **settings: Any) -> Sender:
        spec = OutSpec.model_validate({"url": url, "secret": {"env": "X"}, **settings})
        source = Source(ledger=self.ledger, names=dict, clock=self.clock)
        made = Sender(name, spec, [SECRET], source, self.folder, Random(1))
        self.senders.append(made)
        return made

    def start(self, url: str, name: str = "ci", **settings: Any) -> Sender:
        made = self.sender(url, name, **settings)
        made.start()
        return made

    def place(self, name: str = "ci") -> Place:
        found = read_place(self.folder / f"{name}.json")
        assert found is not None
        return found


def wait(what: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    for sender in made.senders:
        sender.stop()


def positions(receiver: Receiver) -> list[int]:
    return [got.json["position"] for got in receiver.got]


def test_events_come_signed_in_order_from_the_next_one_on(world: World) -> None:
    world.add(3)
    with Receiver() as receiver:
        world.start(receiver.url)
        world.add(20)
        wait(lambda: len(receiver.got) == 20)
        receiver.check(SECRET)
        assert positions(receiver) == list(range(4, 24))
        assert len({got.id for got in receiver.got}) == 20
        first = receiver.got[0]
        assert first.path == "/hook?token=not-shown"
        assert first.headers["content-type"] == "application/json"
        assert set(first.json) == {"type", "timestamp", "format", "position", "stream", "version",
                                   "actor", "model", "text", "data"}  # fmt: skip
        assert first.json["type"] == "AliasMoved"
        assert first.json["data"]["number"] == 4
        assert first.json["model"] == "acme/chat"
    assert world.place().delivered == 23


def test_only_the_events_and_models_that_are_wanted(world: World) -> None:
    with Receiver() as receiver:
        world.start(receiver.url, events=["Alias*", "RouteBlocked"], models=["acme/*"])
        world.add(1, "other/chat")
        world.append("route/acme/chat@prod", 0, RouteBlocked(route="acme/chat@prod", reason="x"))
        world.append("model/acme/x", 0, VersionPublished(
            model="acme/x", number=1, digest="d", bytes_total=0, bytes_new=0, artifacts=0,
            tensors=0))  # fmt: skip
        world.add(1)
        wait(lambda: len(receiver.got) == 2)
        assert positions(receiver) == [2, 4]
        assert [got.json["model"] for got in receiver.got] == ["acme/chat", "acme/chat"]


def test_a_receiver_that_is_down_gets_all_of_it_later_in_order(world: World) -> None:
    receiver = Receiver()
    with receiver:
        pass  # now the port is known, and nobody is there
    sender = world.start(receiver.url)
    world.add(5)
    wait(lambda: world.place().attempts >= 2)
    view = sender.view()
    assert (view["waiting"], view["delivered"]) == (5, None)
    assert "no answer" in view["error"]
    assert "not-shown" not in str(view)
    with receiver:
        wait(lambda: len(receiver.got) >= 5)
    assert positions(receiver) == [1, 2, 3, 4, 5]
    assert (world.place().attempts, world.place().failing_since, world.place().error) == (
        0,
        None,
        "",
    )


def test_a_try_again_has_the_same_id_and_bytes(world: World) -> None:
    answers = iter([500, 429, 302, 204])
    with Receiver(lambda handler: handler.answer(next(answers), b"no", location="/x")) as receiver:
        world.start(receiver.url)
        world.add(1)
        wait(lambda: world.place().delivered == 1)
        assert len(receiver.got) == 4  # the redirect was not followed
        assert len({(got.id, got.body, got.path) for got in receiver.got}) == 1


def test_a_new_start_goes_on_where_the_old_one_was(world: World) -> None:
    with Receiver() as receiver:
        sender = world.start(receiver.url)
        world.add(2)
        wait(lambda: len(receiver.got) == 2)
        sender.stop()
        world.add(3)
        world.start(receiver.url)
        wait(lambda: len(receiver.got) == 5)
    assert positions(receiver) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("kind", ["silent", "drips"])
def test_a_slow_receiver_costs_its_timeout_and_delays_nobody_else(world: World, kind: str) -> None:
    def silent(_: Handler) -> None:
        done.wait(20)

    def drips(handler: Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while not done.wait(0.1):
            handler.wfile.write(b"x-a: b\r\n")

    done = threading.Event()
    with Receiver({"silent": silent, "drips": drips}[kind]) as slow, Receiver() as fast:
        world.start(slow.url, "slow", timeout="1s")
        world.start(fast.url, "fast")
        began = time.monotonic()
        world.add(10)
        wait(lambda: len(fast.got) == 10)
        assert time.monotonic() - began < 3
        wait(lambda: world.place("slow").attempts >= 1, 5)
        assert time.monotonic() - began < 5
        assert "no answer" in world.place("slow").error
        done.set()


def test_a_huge_answer_is_not_read(world: World) -> None:
    sent = 0

    def flood(handler: Handler) -> None:
        nonlocal sent
        handler.send_response(503)
        handler.send_header("content-length", str(1 << 30))
        handler.end_headers()
        while sent < 1 << 30:
            sent += handler.connection.send(b"x" * 65_536)

    with Receiver(flood) as receiver:
        sender = world.start(receiver.url)
        world.add(1)
        wait(lambda: world.place().attempts >= 1)
        sender.stop()
        assert sent < 32 << 20  # what the sockets hold
        assert len(world.place().error) < 300
        assert "answered 503: xxx" in world.place().error


def test_what_a_receiver_asks_for_is_respected(world: World) -> None:
    with Receiver(lambda handler: handler.answer(503, retry_after="3000")) as receiver:
        world.start(receiver.url)
        world.add(1)
        wait(lambda: world.place().attempts == 1)
        time.sleep(1.5)
        assert len(receiver.got) == 1


def test_an_event_is_given_up_after_the_stated_time_and_the_next_is_tried(world: World) -> None:
    def only_later(handler: Handler) -> None:
        first = receiver.got[-1].json["position"] == 1
        handler.answer(500 if first else 204)

    with Receiver(only_later) as receiver:
        sender = world.start(receiver.url, give_up_after="2s")
        world.add(2)
        wait(lambda: world.place().delivered == 2)
        view = sender.view()
    assert (view["given_up"], view["given_up_last"]) == (1, 1)
    assert len([p for p in positions(receiver) if p == 1]) >= 2


def test_time_in_which_nobody_tried_is_no_time_of_failing() -> None:
    place = Place(position=7).failed("no", 1000.0).failed("no", 1010.0)
    later = place.resumed(1_000_000.0)
    assert not later.lost(999_000.0, 86_400.0, 1_000_000.0)
    assert later.lost(999_000.0, 86_400.0, 1_000_000.0 + 86_400.0)
    assert not later.lost(3600.0, 86_400.0, 1_000_000.0 + 86_400.0)  # an event that is young


def test_tries_come_rarer_and_not_together() -> None:
    pauses = [pause(attempts, Random(7)) for attempts in range(1, 40)]
    assert 0.5 <= pauses[0] <= 1
    assert all(150 <= p <= 300 for p in pauses[12:])
    assert len({pause(5, Random(seed)) for seed in range(20)}) == 20


def test_a_ledger_from_a_backup_is_followed_from_its_end(world: World) -> None:
    world.add(2)
    write_place(world.folder / "ci.json", Place(position=100, delivered=100))
    with Receiver() as receiver:
        world.start(receiver.url)
        world.add(1)
        wait(lambda: positions(receiver) == [3])


def test_a_place_that_is_damaged_is_not_guessed(world: World) -> None:
    (world.folder / "ci.json").write_text('{"position": "x"}')
    with pytest.raises(IntegrityError, match=r"ci\.json"):
        world.sender("https://ci.example/")


def test_an_event_with_too_much_in_it_goes_without_its_fields(world: World) -> None:
    with Receiver() as receiver:
        world.start(receiver.url)
        event = AliasMoved(model="acme/chat", alias="a", number=1, digest="d", reason="x" * 70_000)
        world.append("model/acme/chat", 0, event)
        wait(lambda: len(receiver.got) == 1)
        assert receiver.got[0].json["data"] is None
        assert len(receiver.got[0].body) < 2000


def test_ids_of_events_tell_ledgers_apart(world: World) -> None:
    """After a restore another event may have the position; a receiver must not drop it."""
    ids = []
    for start in (1_700_000_000.0, 1_700_000_001.0):
        world.ledger, world.clock = MemoryLedger(), ManualClock(start)
        with Receiver() as receiver:
            sender = world.start(receiver.url, f"at-{start:.0f}")
            world.add(1)
            wait(lambda: len(receiver.got) == 1)
            sender.stop()
        ids.append(receiver.got[0].id)
    assert len(set(ids)) == 2


def test_skipped_events_are_not_looked_at_again_after_a_stop(world: World) -> None:
    with Receiver() as receiver:
        sender = world.start(receiver.url, events="RouteBlocked")
        world.add(30)
        wait(lambda: sender.view()["position"] == 30)
        sender.stop()
        assert (world.place().position, world.place().delivered) == (30, None)
        assert receiver.got == []


def test_every_kind_of_event_can_be_wanted() -> None:
    for kind in event_classes():
        OutSpec.model_validate(
            {"url": "https://ci.example/", "secret": {"env": "X"}, "events": kind}
        )


def test_a_certificate_that_nobody_vouches_for_is_refused(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-keyout", key, "-out", certificate, "-days", "1", "-subj", "/CN=here",
         "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with Receiver(context=context) as receiver:
        stranger = world.start(receiver.url, "stranger")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        world.start(receiver.url, "friend")
        world.add(2)
        wait(lambda: world.place("friend").delivered == 2)
        wait(lambda: world.place("stranger").attempts >= 1)
        assert "CERTIFICATE_VERIFY_FAILED" in stranger.view()["error"]
        assert positions(receiver) == [1, 2]
