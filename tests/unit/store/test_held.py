"""Memory that is lent comes back when nobody looks at it, and not before."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from lockgate.core.digests import Digest, digest_of
from lockgate.store.codec.dtypes import PIECE_BYTES
from lockgate.store.held import Held, Rooms


def where(view: memoryview) -> int:
    return np.frombuffer(view, np.uint8).ctypes.data


def test_what_nobody_looks_at_is_lent_again() -> None:
    rooms = Rooms()
    first = rooms.lend(PIECE_BYTES)
    place = where(first)
    assert where(rooms.lend(PIECE_BYTES)) != place
    del first
    assert where(rooms.lend(PIECE_BYTES - 1)) == place


def test_a_slice_or_an_array_of_it_keeps_it() -> None:
    rooms = Rooms()
    room = rooms.lend(PIECE_BYTES)
    place, part = where(room), np.frombuffer(room[4096:], np.uint16)[7:]
    del room
    assert where(rooms.lend(PIECE_BYTES)) != place
    del part
    assert where(rooms.lend(PIECE_BYTES)) == place


def test_every_size_is_given_as_it_is_asked_for() -> None:
    rooms = Rooms()
    for size in (0, 1, PIECE_BYTES // 8, PIECE_BYTES, PIECE_BYTES + 1):
        room = rooms.lend(size)
        assert len(room) == size
        assert not room.readonly


def test_threads_never_share_one() -> None:
    rooms = Rooms()

    def fill(mark: int) -> bool:
        room = np.frombuffer(rooms.lend(PIECE_BYTES // 8), np.uint8)
        room[:] = mark
        return bool((room == mark).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(fill, [n % 251 for n in range(400)]))


def test_what_is_not_kept_is_loaded_again_and_what_is_kept_is_found() -> None:
    held, loaded = Held(100), 0
    digest = digest_of(b"base")

    def load(_: Digest) -> bytes:
        nonlocal loaded
        loaded += 1
        return b"base"

    for keep, loads in ((False, 1), (False, 2), (True, 3), (False, 3)):
        assert held.get(digest, load, checked=False, keep=keep) == b"base"
        assert loaded == loads
