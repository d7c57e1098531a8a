"""Whatever is done to an encrypted blob, it gives the right bytes or an IntegrityError."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockgate.core.errors import IntegrityError, NotFoundError, UsageError
from lockgate.store.blobs import keys
from lockgate.store.blobs.encrypted import HEADER_BYTES, SEGMENT_BYTES, EncryptedBlobs
from lockgate.store.blobs.keys import Key, KeyRing, new_key
from lockgate.store.blobs.local import LocalBlobs
from lockgate.store.blobs.memory import MemoryBlobs

STEP = SEGMENT_BYTES + 16
CLEAR = os.urandom(3 * SEGMENT_BYTES + 777)
KEY = new_key()


def sealed() -> tuple[MemoryBlobs, bytes]:
    """Returns the backend of an encrypted blob `a`, and the bytes that it has there."""
    inner = MemoryBlobs()
    EncryptedBlobs(inner, KeyRing([KEY])).write("a", [CLEAR])
    return inner, inner.read("a")


INNER, RAW = sealed()


def reads_right_or_not_at_all(raw: bytes, name: str = "a", clear: bytes = CLEAR) -> None:
    """Reads in every way; each gives the right bytes or an error, the whole always an error."""
    inner = MemoryBlobs()
    inner.write(name, [raw])
    blobs = EncryptedBlobs(inner, KeyRing([KEY]))
    with pytest.raises(IntegrityError):
        blobs.read(name)
    for begin in (1, SEGMENT_BYTES, 3 * SEGMENT_BYTES, len(clear)):
        with suppress(IntegrityError):  # what is before `begin` may be damaged unseen
            assert blobs.read(name, begin) == clear[begin:]
    for begin in range(0, len(clear), SEGMENT_BYTES // 2):
        size = min(1000, len(clear) - begin)
        try:
            found = [blobs.read(name, begin, size), *blobs.read_ranges(name, [(begin, size)])]
        except IntegrityError:
            continue
        assert found == [clear[begin : begin + size]] * 2


@given(st.integers(0, len(RAW) - 1), st.integers(1, 255))
@settings(max_examples=60, deadline=None)
def test_any_changed_byte(at: int, change: int) -> None:
    raw = bytearray(RAW)
    raw[at] ^= change
    reads_right_or_not_at_all(bytes(raw))


@pytest.mark.parametrize("at", range(HEADER_BYTES + 1))
def test_every_byte_of_the_header(at: int) -> None:
    raw = bytearray(RAW)
    raw[at] ^= 1
    reads_right_or_not_at_all(bytes(raw))


BOUNDARIES = [HEADER_BYTES + number * STEP for number in range(4)]


@given(st.integers(0, len(RAW) - 1) | st.sampled_from(BOUNDARIES))
@settings(max_examples=60, deadline=None)
def test_any_truncation(size: int) -> None:
    reads_right_or_not_at_all(RAW[:size])


@given(st.binary(min_size=1, max_size=100) | st.just(RAW[HEADER_BYTES : HEADER_BYTES + STEP]))
@settings(max_examples=20, deadline=None)
def test_anything_appended(more: bytes) -> None:
    reads_right_or_not_at_all(RAW + more)


@given(st.permutations(range(4)))
@settings(max_examples=24, deadline=None)
def test_segments_in_another_order(order: list[int]) -> None:
    if order != sorted(order):
        body = RAW[HEADER_BYTES:]
        pieces = [body[number * STEP : (number + 1) * STEP] for number in order]
        reads_right_or_not_at_all(RAW[:HEADER_BYTES] + b"".join(pieces))


@given(st.sets(st.integers(0, 3), min_size=1, max_size=3))
@settings(max_examples=14, deadline=None)
def test_segments_left_out_or_doubled(chosen: set[int]) -> None:
    body = RAW[HEADER_BYTES:]
    pieces = [body[number * STEP : (number + 1) * STEP] for number in range(4)]
    kept = b"".join(piece for number, piece in enumerate(pieces) if number not in chosen)
    reads_right_or_not_at_all(RAW[:HEADER_BYTES] + kept)
    doubled = b"".join(piece * (2 if n in chosen else 1) for n, piece in enumerate(pieces))
    reads_right_or_not_at_all(RAW[:HEADER_BYTES] + doubled)


def test_another_name() -> None:
    reads_right_or_not_at_all(RAW, name="b")


def test_segments_and_header_of_another_blob() -> None:
    inner = MemoryBlobs()
    EncryptedBlobs(inner, KeyRing([KEY])).write("a", [CLEAR])  # the same content, another data key
    other = inner.read("a")
    reads_right_or_not_at_all(other[:HEADER_BYTES] + RAW[HEADER_BYTES:])
    at = HEADER_BYTES + STEP
    mixed = RAW[:at] + other[at : at + STEP] + RAW[at + STEP :]
    reads_right_or_not_at_all(mixed)


def test_a_change_is_seen_by_who_has_read_before() -> None:
    inner = MemoryBlobs()
    blobs = EncryptedBlobs(inner, KeyRing([KEY]))
    blobs.write("a", [CLEAR])
    assert blobs.read("a", 5, 5) == CLEAR[5:10]
    inner.write("a", [RAW[: HEADER_BYTES + STEP]])
    with pytest.raises(IntegrityError):
        blobs.read("a", SEGMENT_BYTES + 5, 5)
    with pytest.raises(IntegrityError):
        blobs.read("a", 5)
    EncryptedBlobs(inner, KeyRing([KEY])).write("a", [b"replaced by another process"])
    assert blobs.read("a", 0, 8) == b"replaced"


@given(st.integers(0, len(CLEAR)), st.integers(0, len(CLEAR)))
@settings(max_examples=40, deadline=None)
def test_any_range(begin: int, end: int) -> None:
    blobs = EncryptedBlobs(INNER, KeyRing([KEY]))
    begin, end = sorted((begin, end))
    assert blobs.read("a", begin, end - begin) == CLEAR[begin:end]
    assert blobs.read("a", begin) == CLEAR[begin:]


@pytest.mark.parametrize("size", [0, 1, SEGMENT_BYTES - 1, SEGMENT_BYTES, SEGMENT_BYTES + 1,
                                  2 * SEGMENT_BYTES])  # fmt: skip
def test_sizes_around_a_segment(size: int) -> None:
    inner = MemoryBlobs()
    blobs = EncryptedBlobs(inner, KeyRing([KEY]))
    assert blobs.write("a", [CLEAR[:size]]) == size
    assert blobs.read("a") == CLEAR[:size]
    assert blobs.read("a", size) == b""
    assert [blob.size for blob in blobs.list()] == [size]
    for end in range(HEADER_BYTES, len(inner.read("a")), max(1, size // 7)):
        inner.write("cut", [inner.read("a", 0, end)])
        with pytest.raises(IntegrityError):
            blobs.read("cut")


def test_nothing_of_the_content_is_stored_in_the_clear() -> None:
    inner = MemoryBlobs()
    EncryptedBlobs(inner, KeyRing([KEY])).write("a", [b"very secret weights" * 5000])
    raw = inner.read("a")
    assert b"very" not in raw
    assert KEY.secret not in raw
    EncryptedBlobs(inner, KeyRing([KEY])).write("b", [b"very secret weights" * 5000])
    assert raw[HEADER_BYTES:] != inner.read("b")[HEADER_BYTES:]


def test_a_blob_that_was_never_encrypted() -> None:
    inner = MemoryBlobs()
    inner.write("a", [b"plain" * 100])
    inner.write("b", [b""])
    blobs = EncryptedBlobs(inner, KeyRing([KEY]))
    for name in "ab":
        with pytest.raises(IntegrityError, match="can't be decrypted"):
            blobs.read(name)
    assert [blob.size for blob in blobs.list()][1] == 0


def test_parts_that_are_sent_again_have_another_data_key() -> None:
    class Twice(MemoryBlobs):
        def write(self, name: str, parts: object) -> int:
            super().write("first", parts)  # type: ignore[arg-type]
            return super().write(name, parts)  # type: ignore[arg-type]

    inner = Twice()
    blobs = EncryptedBlobs(inner, KeyRing([KEY]))
    assert blobs.write("a", [b"again"]) == 5
    assert blobs.read("a") == b"again"
    assert inner.read("first") != inner.read("a")


# Keys


def test_rotation_wraps_new_blobs_and_reads_old_ones(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    inner = LocalBlobs(tmp_path / "store")
    old = EncryptedBlobs(inner, keys.create(path))
    old.write("old", [CLEAR])
    fresh = EncryptedBlobs(inner, keys.rotate(path))
    fresh.write("new", [b"new"])
    for blobs in (fresh, EncryptedBlobs(inner, keys.load(path))):
        assert blobs.read("old") == CLEAR
        assert blobs.read("new") == b"new"
    with pytest.raises(IntegrityError, match="not in this key file"):
        old.read("new")


def test_rewrap_lets_an_old_key_go() -> None:
    inner = MemoryBlobs()
    first, second = new_key(), new_key()
    EncryptedBlobs(inner, KeyRing([first])).write("a", [CLEAR])
    before = inner.read("a")
    blobs = EncryptedBlobs(inner, KeyRing([first, second]))
    assert blobs.read("a", 5, 5) == CLEAR[5:10]
    assert blobs.rewrap("a")
    assert not blobs.rewrap("a")
    assert inner.read("a")[HEADER_BYTES:] == before[HEADER_BYTES:]
    assert EncryptedBlobs(inner, KeyRing([second])).read("a") == CLEAR
    with pytest.raises(NotFoundError):
        blobs.rewrap("b")


def test_rewrap_never_replaces_a_blob_by_a_damaged_one() -> None:
    inner = MemoryBlobs()
    first = new_key()
    EncryptedBlobs(inner, KeyRing([first])).write("a", [CLEAR])
    raw = bytearray(inner.read("a"))
    raw[-1] ^= 1
    inner.write("a", [bytes(raw)])
    with pytest.raises(IntegrityError):
        EncryptedBlobs(inner, KeyRing([first, new_key()])).rewrap("a")
    assert inner.read("a") == raw


def test_a_key_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    ring = keys.create(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert keys.load(path).newest == ring.newest
    with pytest.raises(UsageError, match="already"):
        keys.create(path)
    assert keys.load(path).newest == ring.newest
    assert keys.rotate(path).newest != ring.newest
    assert path.stat().st_mode & 0o777 == 0o600
    assert [item.name for item in tmp_path.iterdir()] == ["keys.json"]
    for mode in (0o640, 0o604, 0o644):
        path.chmod(mode)
        with pytest.raises(UsageError, match="read by others") as caught:
            keys.load(path)
        assert "chmod 600" in str(caught.value.hint)


def test_a_key_is_never_shown() -> None:
    assert KEY.secret.hex() not in repr(KEY)
    assert repr(KEY.secret) not in repr(KEY)


def broken_files() -> Iterator[str]:
    good = {"id": "0" * 16, "key": "A" * 43 + "="}
    yield ""
    yield "[]"
    yield "{}"
    yield json.dumps({"format": "lockgate/keys@2", "keys": [good]})
    yield json.dumps({"format": "lockgate/keys@1", "keys": []})
    yield json.dumps({"format": "lockgate/keys@1", "keys": [good, good]})
    for wrong in (
        {"id": "x"},
        {"id": 5},
        {"key": "A"},
        {"key": "A" * 44},
        {"key": None},
        {"key": "é"},
    ):
        yield json.dumps({"format": "lockgate/keys@1", "keys": [good | wrong]})


@pytest.mark.parametrize("text", list(broken_files()))
def test_a_broken_key_file_is_said(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(IntegrityError, match="not a key file"):
        keys.load(path)


def test_a_missing_key_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="can't be read"):
        keys.load(tmp_path / "keys.json")
    with pytest.raises(UsageError, match="without a key"):
        KeyRing([])
    assert Key(id="0" * 16, secret=b"x") == Key(id="0" * 16, secret=b"x")
