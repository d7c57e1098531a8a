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
from lockgate.store.api import Object, Objects
from lockgate.store.blobs.local import LocalBlobs
from lockgate.store.blobs.memory import MemoryBlobs
from lockgate.store.packs import PackStore


@contextmanager
def remote(folder: Path) -> Iterator[RemoteObjects]:
    """Objects of a real HTTP server over a local store."""
    ledger = MemoryLedger()
    registry = Registry(ledger, PackStore(LocalBlobs(folder)), ManualClock())
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
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Objects]:
    if request.param == "remote":
        with remote(tmp_path / "store") as found:
            yield found
    elif request.param == "memory":
        yield PackStore(MemoryBlobs())
    else:
        yield PackStore(LocalBlobs(tmp_path / "store"))


def put(objects: Objects, *contents: bytes) -> list[Digest]:
    given = [Object(digest=digest_of(content), data=content) for content in contents]
    objects.put(given)
    objects.flush([one.digest for one in given])
    return [one.digest for one in given]


def test_what_was_put_comes_back(objects: Objects) -> None:
    contents = [b"", b"a", b"\0" * 1000, bytes(range(256)) * 100]
    for digest, content in zip(put(objects, *contents), contents, strict=True):
        assert objects.get(digest) == content
    assert sorted(objects.digests()) == sorted(digest_of(c) for c in contents)


def test_missing_says_what_is_not_here_whole(objects: Objects) -> None:
    (here,) = put(objects, b"here")
    away = digest_of(b"away")
    assert objects.missing({here: 4, away: 4}) == {away}
    assert objects.missing({here: 5}) == {here}
    assert objects.missing({digest_of(b""): 0}) == {digest_of(b"")}


def test_putting_again_changes_nothing(objects: Objects) -> None:
    put(objects, b"once")
    put(objects, b"once", b"once")
    assert list(objects.digests()) == [digest_of(b"once")]


def test_bytes_with_another_digest_are_refused(objects: Objects) -> None:
    with pytest.raises(IntegrityError):
        objects.put([Object(digest=digest_of(b"right"), data=b"wrong")])
    assert list(objects.digests()) == []


def test_an_unknown_digest_is_not_found(objects: Objects) -> None:
    with pytest.raises(NotFoundError):
        objects.get(digest_of(b"nowhere"))


def test_discard_removes_and_may_be_repeated(objects: Objects) -> None:
    (a,) = put(objects, b"a")
    (b,) = put(objects, b"b")
    objects.discard([a, a, digest_of(b"never")])
    assert list(objects.digests()) == [b]


def test_what_shares_a_pack_with_others_stays_for_the_garbage(objects: Objects) -> None:
    a, b = put(objects, b"a", b"b")
    objects.discard([a])
    assert set(objects.digests()) >= {b}
    assert objects.get(b) == b"b"


def test_a_flipped_bit_is_damaged_and_healed_by_the_next_put(tmp_path: Path) -> None:
    objects = PackStore(LocalBlobs(tmp_path))
    (digest,) = put(objects, b"0123456789")
    flip(next((tmp_path / "packs").glob("*/*")), b"0123456789")
    with pytest.raises(IntegrityError, match="damaged"):
        objects.get(digest)
    assert objects.missing({digest: 10}) == {digest}
    assert list(objects.digests()) == []
    put(objects, b"0123456789")
    assert objects.get(digest) == b"0123456789"
    again = PackStore(LocalBlobs(tmp_path))
    assert again.get(digest) == b"0123456789"


def flip(path: Path, content: bytes) -> None:
    """Changes a bit of the content in the file."""
    raw = bytearray(path.read_bytes())
    raw[raw.index(content)] ^= 1
    path.write_bytes(raw)


def test_a_store_of_another_format_is_refused(tmp_path: Path) -> None:
    PackStore(LocalBlobs(tmp_path))
    (tmp_path / "format").write_text("lockgate/store@9\n")
    with pytest.raises(IntegrityError, match="store@9"):
        PackStore(LocalBlobs(tmp_path))


def test_what_is_not_here_can_not_be_made_durable(objects: Objects) -> None:
    with pytest.raises(NotFoundError):
        objects.flush([digest_of(b"nowhere")])
