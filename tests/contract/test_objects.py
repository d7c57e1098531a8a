"""The contract of the port Objects, run on every adapter."""

from __future__ import annotations

import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import uvicorn

from lockgate.client.client import Client, RemoteObjects
from lockgate.client.home import Server
from lockgate.client.pulled import PulledObjects
from lockgate.core.clock import ManualClock
from lockgate.core.digests import Digest, digest_of
from lockgate.core.errors import IntegrityError, NotFoundError
from lockgate.ledger.memory import MemoryLedger
from lockgate.registry.service import Registry
from lockgate.server.app import create_app
from lockgate.store.api import Grid, Object, Objects, Source
from lockgate.store.blobs.api import BackendOptions
from lockgate.store.blobs.keys import create
from lockgate.store.blobs.local import LocalBlobs
from lockgate.store.blobs.memory import MemoryBlobs
from lockgate.store.blobs.open import open_blobs
from lockgate.store.packs import PackStore


@contextmanager
def remote(folder: Path) -> Iterator[RemoteObjects]:
    """Objects of a real HTTP server over a local store."""
    ledger = MemoryLedger()
    store = PackStore(LocalBlobs(folder))
    registry = Registry(ledger, store, ManualClock())
    control = SimpleNamespace(token="t" * 40, registry=registry, commands=None, store=store)
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


PARAMS = [
    "memory",
    "local",
    "encrypted",
    "remote",
    "pulled",
    pytest.param("s3", marks=pytest.mark.s3),
]


@pytest.fixture(params=PARAMS)
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Objects]:
    if request.param == "remote":
        with remote(tmp_path / "store") as found:
            yield found
    elif request.param == "pulled":
        with remote(tmp_path / "store") as found:
            cache = PackStore(LocalBlobs(tmp_path / "cache"))
            yield PulledObjects(found._client, cache)
    elif request.param == "encrypted":
        create(tmp_path / "keys.json")
        options = BackendOptions(key_file=tmp_path / "keys.json")
        yield PackStore(open_blobs(str(tmp_path / "store"), options))
    elif request.param == "s3":
        s3 = request.getfixturevalue("s3")
        options = BackendOptions(
            endpoint=s3["endpoint"], region=s3["region"], allow_http=True,
            access_key=s3["access_key"], secret_key=s3["secret_key"],
        )  # fmt: skip
        yield PackStore(open_blobs(f"s3://{s3['bucket']}/{uuid.uuid4().hex}", options))
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


def test_a_fine_tune_takes_a_fraction_of_its_base_on_every_backend(objects: Objects) -> None:
    rng = np.random.default_rng(1)
    grid = Grid(dtype="F16", shape=(64, 1024))
    base = (rng.standard_normal(grid.shape) / 32).astype(np.float16)
    child = (base + rng.standard_normal(grid.shape) * 1e-5).astype(np.float16)
    first, second = (
        Object(digest=digest_of(part.tobytes()), data=part.tobytes(), grid=grid)
        for part in (base, child)
    )
    objects.put([first])
    objects.flush([first.digest])
    source = Source(grid=grid, pieces=((first.digest, len(first.data)),))
    objects.put([replace(second, sources=(source,))])
    objects.flush([second.digest])
    assert objects.get(second.digest) == second.data
    if isinstance(objects, PulledObjects):
        assert objects.travelled < len(first.data)  # the base by its planes, then a difference
        before = objects.travelled
        assert objects.get(first.digest) == first.data
        assert objects.travelled == before
    if isinstance(objects, PackStore):
        place = objects.place(second.digest)
        assert place
        assert place.length < len(second.data) / 4
