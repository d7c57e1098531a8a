"""Digests: the only addresses in lockgate.

A digest is `blake3:` and 64 lower-case hexadecimal digits: BLAKE3-256 of the decoded bytes.
"""

from __future__ import annotations

import re
from typing import NewType

from blake3 import blake3

from lockgate.core import canonical
from lockgate.core.errors import UsageError

Digest = NewType("Digest", str)
"""A checked digest text; make one with `parse_digest`, `digest_of` or `Hasher`."""

_FORM = re.compile(r"blake3:[0-9a-f]{64}")
_SHORT = len("blake3:") + 12


class Hasher:
    """Hashes bytes that arrive in pieces."""

    __slots__ = ("_state",)

    def __init__(self) -> None:
        self._state = blake3()

    def update(self, data: bytes | memoryview) -> None:
        """Adds `data`."""
        self._state.update(data)

    def digest(self) -> Digest:
        """Returns the digest of all bytes so far."""
        return Digest("blake3:" + self._state.hexdigest())


def digest_of(data: bytes | bytearray | memoryview) -> Digest:
    """Returns the digest of `data`."""
    return Digest("blake3:" + blake3(data).hexdigest())


def digest_of_value(value: object) -> Digest:
    """Returns the digest of the canonical JSON of `value`."""
    return digest_of(canonical.encode(value))


def parse_digest(text: str) -> Digest:
    """Returns `text` as a digest; raises UsageError when it is not one."""
    if not _FORM.fullmatch(text):
        raise UsageError(
            f"{text!r} is not a digest",
            hint="a digest is 'blake3:' and 64 lower-case hexadecimal digits",
        )
    return Digest(text)


def is_digest(text: str) -> bool:
    """Says whether `text` has the form of a digest."""
    return _FORM.fullmatch(text) is not None


def short(digest: str) -> str:
    """Returns the first 12 hexadecimal digits, for people: `blake3:1f2e3d4c5b6a`."""
    return digest[:_SHORT]


def hex_of(digest: str) -> str:
    """Returns the hexadecimal part alone."""
    return digest.removeprefix("blake3:")


def raw_of(digest: str) -> bytes:
    """Returns the digest's 32 bytes, as formats have them."""
    return bytes.fromhex(hex_of(digest))


def from_raw(raw: bytes | memoryview) -> Digest:
    """Returns the digest of those 32 bytes."""
    return Digest("blake3:" + raw.hex())
