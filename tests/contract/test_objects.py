"""The contract of the port Objects, run on every adapter."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import uvicorn

from lockgate.client.client import Client, RemoteObjects
from lockgate.client.home import Server
from lockgate.core.clock import ManualClock
from lockgate.core.digests import Digest, digest_of
from lockgate.core.errors import IntegrityError, NotFoundError
from lockgate.ledger.memory import MemoryLedger
from lockgate.registry.service import Registry
from lockgate.server.app import create_app
from lockgate.store.local import LocalObjects
from lockgate.store.memory import MemoryObjects

AnyObjects = MemoryObjects | LocalObjects | RemoteObjects


@contextmanager
def remote(folder: Path) -> Iterator[RemoteObjects]:
    """Objects of a real HTTP server over a local store."""
    ledger = MemoryLedger()
    registry = Registry(ledger, LocalObjects(folder), ManualClock())
    control = SimpleNamespace(token="t" * 40, registry=registry, commands=None)
    listener = socket.create_server(("127.0.0.1", 0))
    app = create_app(control)  # type: ignore[arg-type]
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
    thread = threading.Thread(target=lambda: server.run(sockets=[listener]))
    thread.start()
    try:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with Client(Server(url=url, token="t" * 40)) as client:
            yield RemoteObjects(client)
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@pytest.fixture(params=["memory", "local", "remote"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AnyObjects]:
    if request.param == "remote":
        with remote(tmp_path / "store") as found:
            yield found
    else:
        yield MemoryObjects() if request.param == "memory" else LocalObjects(tmp_path / "store")


def put(objects: AnyObjects, *contents: bytes) -> list[Digest]:
    pairs = [(digest_of(content), content) for content in contents]
    objects.put(pairs)
    objects.flush([digest for digest, _ in pairs])
    return [digest for digest, _ in pairs]


def test_what_was_put_comes_back(objects: AnyObjects) -> None:
    contents = [b"", b"a", b"\0" * 1000, bytes(range(256)) * 100]
    for digest, content in zip(put(objects, *contents), contents, strict=True):
        assert objects.get(digest) == content
    assert sorted(objects.digests()) == sorted(digest_of(c) for c in contents)


def test_missing_says_what_is_not_here_whole(objects: AnyObjects) -> None:
    (here,) = put(objects, b"here")
    away = digest_of(b"away")
    assert objects.missing({here: 4, away: 4}) == {away}
    assert objects.missing({here: 5}) == {here}
    assert objects.missing({digest_of(b""): 0}) == {digest_of(b"")}


def test_putting_again_changes_nothing(objects: AnyObjects) -> None:
    put(objects, b"once")
    put(objects, b"once", b"once")
    assert list(objects.digests()) == [digest_of(b"once")]


def test_bytes_with_another_digest_are_refused(objects: AnyObjects) -> None:
    with pytest.raises(IntegrityError):
        objects.put([(digest_of(b"right"), b"wrong")])
    assert list(objects.digests()) == []


def test_an_unknown_digest_is_not_found(objects: AnyObjects) -> None:
    with pytest.raises(NotFoundError):
        objects.get(digest_of(b"nowhere"))


def test_discard_removes_and_may_be_repeated(objects: AnyObjects) -> None:
    a, b = put(objects, b"a", b"b")
    objects.discard([a, a, digest_of(b"never")])
    assert list(objects.digests()) == [b]


def test_a_truncated_object_is_damaged_and_healed_by_the_next_put(tmp_path: Path) -> None:
    objects = LocalObjects(tmp_path)
    (digest,) = put(objects, b"0123456789")
    path = next((tmp_path / "objects").glob("*/*"))
    path.write_bytes(b"01234")
    with pytest.raises(IntegrityError, match="damaged"):
        objects.get(digest)
    assert objects.missing({digest: 10}) == {digest}
    put(objects, b"0123456789")
    assert objects.get(digest) == b"0123456789"


def test_a_flipped_bit_is_damaged(tmp_path: Path) -> None:
    objects = LocalObjects(tmp_path)
    (digest,) = put(objects, b"0123456789")
    next((tmp_path / "objects").glob("*/*")).write_bytes(b"0123456780")
    with pytest.raises(IntegrityError, match="damaged"):
        objects.get(digest)


def test_a_store_of_another_format_is_refused(tmp_path: Path) -> None:
    LocalObjects(tmp_path)
    (tmp_path / "format").write_text("lockgate/store@9\n")
    with pytest.raises(IntegrityError, match="store@9"):
        LocalObjects(tmp_path)


def test_what_is_not_here_can_not_be_made_durable(objects: AnyObjects) -> None:
    with pytest.raises(NotFoundError):
        objects.flush([digest_of(b"nowhere")])
