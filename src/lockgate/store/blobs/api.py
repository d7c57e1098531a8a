"""The port of the store's backends, `Blobs`, its values, and the rules that all adapters share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from lockgate.core.errors import IntegrityError, NotFoundError, UsageError

_SEGMENT = r"(?!\.)[a-z0-9._-]+"
_NAME = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})*")
_PREFIX = re.compile(rf"(?:{_SEGMENT}/)*(?:{_SEGMENT})?")
_LONGEST = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """One stored blob: its size in bytes, and when it was written in seconds since the epoch."""

    name: str
    size: int
    modified: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendOptions:
    """How to reach a backend and what to put before it; see `docs/backends.md`.

    Without keys here the object store's client looks for them in the environment (`AWS_*`).
    """

    endpoint: str | None = None
    region: str | None = None
    access_key: str | None = None
    secret_key: str | None = field(default=None, repr=False)
    virtual_hosted: bool = False
    allow_http: bool = False
    attempts: int = 5
    bytes_per_second: float | None = None
    cache_folder: Path | None = None
    cache_bytes: int = 16 * 1024**3
    cache_only: tuple[str, ...] = ("",)
    key_file: Path | None = None


class Blobs(Protocol):
    """Named byte strings, whole or absent at any moment, durable when `write` returns.

    A name has the form that `check_name` demands. No name is the folder of another one (`a` and
    `a/b`): an adapter may refuse the second. All methods may be called from many threads.
    """

    def write(self, name: str, parts: Iterable[bytes | memoryview]) -> int:
        """Stores the parts, in order, as one blob, in place of one of that name; returns its bytes.

        A few parts are in memory at a time. When this raises, an error of `parts` itself included,
        the name stands for what it stood for before.
        """
        ...

    def read(self, name: str, begin: int = 0, size: int | None = None) -> bytes:
        """Returns `size` bytes from `begin` on, all that follow without `size`.

        Raises NotFoundError when there is no such blob, IntegrityError when it ends too early.
        """
        ...

    def read_ranges(self, name: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Returns the bytes of each (begin, size), in parallel where that pays; raises as read."""
        ...

    def list(self, prefix: str = "") -> Iterator[Blob]:
        """Yields the blobs whose names begin with that text, by name. The first comes cheaply."""
        ...

    def remove(self, names: Iterable[str]) -> None:
        """Removes the blobs, for good when this returns; those that are not there are fine."""
        ...

    def close(self) -> None:
        """Lets go of files, connections and threads."""
        ...


def check_name(name: str) -> str:
    """Returns `name`; raises UsageError when it is no name of a blob."""
    if len(name) > _LONGEST or not _NAME.fullmatch(name):
        raise UsageError(
            f"{name[: _LONGEST + 20]!r} can't be the name of a blob",
            hint="parts of a-z, 0-9, '.', '_' and '-' between slashes, none starting with a dot; "
            f"{_LONGEST} characters at most",
        )
    return name


def is_name(text: str) -> bool:
    """Says whether `text` can be the name of a blob."""
    return len(text) <= _LONGEST and _NAME.fullmatch(text) is not None


def is_prefix(text: str) -> bool:
    """Says whether a name can begin with `text`."""
    return len(text) <= _LONGEST and _PREFIX.fullmatch(text) is not None


def check_ranges(ranges: Sequence[tuple[int, int]]) -> None:
    """Raises UsageError when a (begin, size) is below zero."""
    for begin, size in ranges:
        if begin < 0 or size < 0:
            raise UsageError(f"{size} bytes from byte {begin} on are not a range of a blob")


def absent(name: str) -> NotFoundError:
    """Returns the error for a blob that is not there."""
    return NotFoundError(f"blob {name} is not in this store")


def too_short(name: str, begin: int, size: int | None) -> IntegrityError:
    """Returns the error for a blob that ends before what is asked of it."""
    wanted = begin if size is None else begin + size
    return IntegrityError(
        f"blob {name} ends before byte {wanted}",
        hint="it was cut, or what names this range is of another blob; run 'lockgate verify'",
    )


def find(blobs: Blobs, name: str) -> Blob:
    """Returns the blob of exactly that name, at the cost of one request; raises NotFoundError."""
    found = next(blobs.list(check_name(name)), None)
    if found is None or found.name != name:
        raise absent(name)
    return found


def cut(parts: Iterable[bytes | memoryview], size: int) -> Iterator[bytes]:
    """Yields the same bytes in pieces of `size`; only the last may be shorter, none is empty."""
    held = bytearray()
    for part in parts:
        view = memoryview(part if memoryview(part).nbytes else b"").cast("B")
        at = 0
        while len(held) + len(view) - at >= size:
            end = at + size - len(held)
            held += view[at:end]
            yield bytes(held)
            held.clear()
            at = end
        held += view[at:]
    if held:
        yield bytes(held)
