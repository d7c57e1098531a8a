"""Blobs that are encrypted before they leave this process.

    header    MAGIC (16 bytes), id of the wrapping key (8 bytes), wrapped data key (60 bytes)
    segments  each 256 KiB of plaintext, the last one less, as AES-256-GCM with a tag of 16 bytes

A blob has a random data key of its own, wrapped by a key of the key ring. Segments follow the
STREAM construction (Hoang, Reyhanitabar, Rogaway, Vizár: Online Authenticated-Encryption and its
Nonce-Reuse Misuse-Resistance, CRYPTO 2015): the nonce is the segment's number and whether it is the
last. So ranges are read alone, and a blob that was cut, reordered, renamed or changed is an
IntegrityError, never other bytes. Not hidden: names, sizes, times. Not prevented: that a whole
older blob is put back in place of a newer one of the same name.
"""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

from lockgate.core.errors import IntegrityError
from lockgate.store.blobs.api import (
    Blob,
    Blobs,
    check_name,
    check_ranges,
    cut,
    find,
    too_short,
)
from lockgate.store.blobs.keys import KEY_BYTES, NONCE_BYTES, TAG_BYTES, KeyRing, aes_gcm

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

MAGIC = b"lockgate/aead@1\n"
SEGMENT_BYTES = 256 * 1024
_ID_BYTES = 8
HEADER_BYTES = len(MAGIC) + _ID_BYTES + NONCE_BYTES + KEY_BYTES + TAG_BYTES
_STEP = SEGMENT_BYTES + TAG_BYTES
_KEPT = 4096
_COPIED = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    """What it takes to read a blob: its cipher and its size in plaintext bytes."""

    cipher: AESGCM
    size: int

    @property
    def segments(self) -> int:
        return max(1, -(-self.size // SEGMENT_BYTES))


class EncryptedBlobs:
    """`Blobs` whose bytes `inner` sees only encrypted; sizes and ranges are those of the plaintext.

    A blob's data key and size stay in memory (4,096 blobs): its first range costs two more
    requests, the following ones none.
    """

    def __init__(self, inner: Blobs, keys: KeyRing) -> None:
        aes_gcm(bytes(KEY_BYTES))  # says now that cryptography is missing, not in the middle
        self._inner = inner
        self._keys = keys
        self._lock = threading.Lock()
        self._known: OrderedDict[str, _Opened] = OrderedDict()

    def write(self, name: str, parts: Iterable[bytes | memoryview]) -> int:
        """See `Blobs.write`."""
        sealed = _Sealed(self._keys, check_name(name), parts)
        self._inner.write(name, iter(sealed) if iter(parts) is parts else sealed)
        self._forget(name)
        return sealed.size

    def read(self, name: str, begin: int = 0, size: int | None = None) -> bytes:
        """See `Blobs.read`. Without `size` the end is checked too, even if nothing follows."""
        check_ranges([(begin, size or 0)])
        if begin == 0 and size is None:
            return self._whole(name)
        return self._ranges(name, [(begin, size)])[0]

    def read_ranges(self, name: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """See `Blobs.read_ranges`."""
        check_ranges(ranges)
        return self._ranges(name, ranges) if ranges else []

    def _ranges(self, name: str, ranges: Sequence[tuple[int, int | None]]) -> list[bytes]:
        """Reads, once more from the header on when what was known of the blob does not fit it."""
        with self._lock:
            known = self._known.get(check_name(name))
            if known is not None:
                self._known.move_to_end(name)
        if known is not None:
            try:
                return self._decrypted(name, known, ranges)
            except IntegrityError:
                self._forget(name)
        opened = self._open(name)
        found = self._decrypted(name, opened, ranges)
        with self._lock:
            self._known[name] = opened
            if len(self._known) > _KEPT:
                self._known.popitem(last=False)
        return found

    def _forget(self, name: str) -> None:
        with self._lock:
            self._known.pop(name, None)

    def _open(self, name: str) -> _Opened:
        size = _plain_size(name, find(self._inner, name).size)
        header = self._inner.read(name, 0, HEADER_BYTES)
        return _Opened(cipher=aes_gcm(_data_key(self._keys, name, header)), size=size)

    def _whole(self, name: str) -> bytes:
        data = memoryview(self._inner.read(check_name(name)))
        size = _plain_size(name, len(data))
        key = _data_key(self._keys, name, bytes(data[:HEADER_BYTES]))
        opened = _Opened(cipher=aes_gcm(key), size=size)
        body = data[HEADER_BYTES:]
        return b"".join(_unseal(name, opened, range(opened.segments), body))

    def _decrypted(
        self, name: str, blob: _Opened, ranges: Sequence[tuple[int, int | None]]
    ) -> list[bytes]:
        """Returns the plaintext of the ranges, each segment read and decrypted once."""
        wanted: set[int] = set()
        for begin, size in ranges:
            end = blob.size if size is None else begin + size
            if max(begin, end) > blob.size:
                raise too_short(name, begin, size)
            wanted.update(_touched(begin, end), (blob.segments - 1,) if size is None else ())
        runs = _runs(wanted)
        total = HEADER_BYTES + blob.size + TAG_BYTES * blob.segments
        begins = [HEADER_BYTES + run.start * _STEP for run in runs]
        ends = [min(HEADER_BYTES + run.stop * _STEP, total) for run in runs]
        spans = [(begin, end - begin) for begin, end in zip(begins, ends, strict=True)]
        found = self._inner.read_ranges(name, spans)
        clear: dict[int, bytes] = {}
        for run, data in zip(runs, found, strict=True):
            clear.update(zip(run, _unseal(name, blob, run, memoryview(data)), strict=True))
        return [_slice(clear, at, blob.size if n is None else at + n) for at, n in ranges]

    def list(self, prefix: str = "") -> Iterator[Blob]:
        """See `Blobs.list`. What is no encrypted blob is listed with its size 0."""
        for blob in self._inner.list(prefix):
            try:
                yield replace(blob, size=_plain_size(blob.name, blob.size))
            except IntegrityError:
                yield replace(blob, size=0)

    def remove(self, names: Iterable[str]) -> None:
        """See `Blobs.remove`."""
        wanted = [*names]
        self._inner.remove(wanted)
        for name in wanted:
            self._forget(name)

    def close(self) -> None:
        """See `Blobs.close`."""
        self._inner.close()

    def rewrap(self, name: str) -> bool:
        """Puts a blob's data key under the newest key; False when it is there already.

        No backend can change a part of a blob, so its bytes are copied, 8 MiB at a time; each
        segment is checked on the way, and when one is damaged the blob stays as it is. Nobody else
        should replace the blob meanwhile. Raises NotFoundError, IntegrityError, UsageError.
        """
        header = self._inner.read(check_name(name), 0, HEADER_BYTES)
        if _key_id(name, header) == self._keys.newest:
            return False
        key = _data_key(self._keys, name, header)
        size = _plain_size(name, find(self._inner, name).size)
        blob = _Opened(cipher=aes_gcm(key), size=size)
        again = _header(self._keys, name, key)
        self._inner.write(name, chain((again,), self._checked(name, blob)))
        self._forget(name)
        return True

    def _checked(self, name: str, blob: _Opened) -> Iterator[bytes]:
        """Yields a blob's segments as they are stored, after a look into each."""
        total = HEADER_BYTES + blob.size + TAG_BYTES * blob.segments
        for first in range(0, blob.segments, _COPIED):
            run = range(first, min(first + _COPIED, blob.segments))
            begin = HEADER_BYTES + run.start * _STEP
            data = self._inner.read(name, begin, min(total, begin + len(run) * _STEP) - begin)
            for _ in _unseal(name, blob, run, memoryview(data)):
                pass
            yield data


class _Sealed:
    """The encrypted form of `parts`; going through it again uses another data key."""

    def __init__(self, keys: KeyRing, name: str, parts: Iterable[bytes | memoryview]) -> None:
        self._keys = keys
        self._name = name
        self._parts = parts
        self.size = 0

    def __iter__(self) -> Iterator[bytes]:
        key = secrets.token_bytes(KEY_BYTES)
        cipher = aes_gcm(key)
        yield _header(self._keys, self._name, key)
        self.size = number = 0
        held = b""
        for piece in cut(self._parts, SEGMENT_BYTES):
            if self.size:
                yield cipher.encrypt(*_sealing(self._name, number, held, last=False))
                number += 1
            held = piece
            self.size += len(piece)
        yield cipher.encrypt(*_sealing(self._name, number, held, last=True))


def _sealing(name: str, number: int, data: bytes, *, last: bool) -> tuple[bytes, bytes, bytes]:
    """Returns nonce, data and what else the tag covers, for one segment."""
    place = number.to_bytes(NONCE_BYTES - 1, "big") + bytes([last])
    return place, data, MAGIC + place + name.encode("ascii")


def _unseal(name: str, blob: _Opened, run: range, data: memoryview) -> Iterator[bytes]:
    """Yields the plaintext of the segments of `run`, whose encrypted bytes are `data`."""
    from cryptography.exceptions import InvalidTag

    for at, number in enumerate(run):
        sealed = data[at * _STEP : (at + 1) * _STEP]
        last = number == blob.segments - 1
        nonce, _, about = _sealing(name, number, b"", last=last)
        try:
            yield blob.cipher.decrypt(nonce, sealed, about)
        except (InvalidTag, ValueError):
            raise _changed(name, f"segment {number} is not what was written") from None


def _header(keys: KeyRing, name: str, data_key: bytes) -> bytes:
    opening = MAGIC + bytes.fromhex(keys.newest)
    return opening + keys.wrap(data_key, opening + name.encode("ascii"))


def _key_id(name: str, header: bytes) -> str:
    if len(header) < HEADER_BYTES or not header.startswith(MAGIC):
        raise _changed(name, "it does not begin as an encrypted blob does")
    return header[len(MAGIC) : len(MAGIC) + _ID_BYTES].hex()


def _data_key(keys: KeyRing, name: str, header: bytes) -> bytes:
    key = _key_id(name, header)
    opening = header[: len(MAGIC) + _ID_BYTES]
    try:
        return keys.unwrap(key, header[len(opening) :], opening + name.encode("ascii"))
    except IntegrityError as error:
        raise _changed(name, error.message, error.hint) from None


def _plain_size(name: str, size: int) -> int:
    """Returns how many plaintext bytes a stored size stands for; raises IntegrityError for none."""
    body = size - HEADER_BYTES
    count = -(-body // _STEP)
    plain = body - count * TAG_BYTES
    if body < TAG_BYTES or (count > 1 and plain <= (count - 1) * SEGMENT_BYTES):
        raise _changed(name, f"it has {size} bytes, as no encrypted blob does")
    return plain


def _runs(numbers: Iterable[int]) -> list[range]:
    """Returns the numbers as ranges without gaps, in order."""
    runs: list[range] = []
    for number in sorted(numbers):
        if runs and runs[-1].stop == number:
            runs[-1] = range(runs[-1].start, number + 1)
        else:
            runs.append(range(number, number + 1))
    return runs


def _touched(begin: int, end: int) -> range:
    """Returns the numbers of the segments that hold the plaintext from `begin` to `end`."""
    return range(begin // SEGMENT_BYTES, -(-end // SEGMENT_BYTES) if end > begin else 0)


def _slice(clear: dict[int, bytes], begin: int, end: int) -> bytes:
    parts = []
    for number in _touched(begin, end):
        at = number * SEGMENT_BYTES
        parts.append(memoryview(clear[number])[max(0, begin - at) : end - at])
    return b"".join(parts)


def _changed(name: str, why: str, hint: str | None = None) -> IntegrityError:
    damaged = "it was damaged or changed where it is stored; restore it from another copy"
    return IntegrityError(f"blob {name} can't be decrypted: {why}", hint=hint or damaged)
