"""Reading the headers of a file that may be terabytes: a window over it, moved by seeks."""

from __future__ import annotations

from typing import BinaryIO

_WINDOW = 8192


class Cursor:
    """A place in a file that moves as one reads; holds a few KiB of it in memory.

    What is asked for beyond the end raises ValueError, never reads.
    """

    __slots__ = ("_base", "_place", "_size", "_source", "_window")

    def __init__(self, source: BinaryIO, size: int, at: int = 0) -> None:
        self._source = source
        self._size = size
        self._base = at
        self._place = 0
        self._window = b""

    @property
    def at(self) -> int:
        """The place in the file, in bytes from its start."""
        return self._base + self._place

    @property
    def left(self) -> int:
        """The bytes from here to the end."""
        return self._size - self.at

    def seek(self, at: int) -> None:
        """Goes to `at`, which may be behind or ahead; raises ValueError beyond the end."""
        if not 0 <= at <= self._size:
            raise ValueError(f"byte {at} is beyond its end")
        place = at - self._base
        if 0 <= place <= len(self._window):
            self._place = place
        else:
            self._base, self._place, self._window = at, 0, b""

    def skip(self, count: int) -> None:
        """Goes `count` bytes ahead; raises ValueError beyond the end."""
        self.seek(self.at + count)

    def take(self, count: int) -> bytes:
        """Returns the next `count` bytes; the caller bounds the count."""
        place = self._place
        stop = place + count
        if stop > len(self._window):
            self._fill(count)
            place, stop = 0, count
        self._place = stop
        return self._window[place:stop]

    def natural(self, count: int) -> int:
        """Returns the little-endian unsigned integer in the next `count` bytes."""
        return int.from_bytes(self.take(count), "little")

    def byte(self) -> int:
        """Returns the next byte."""
        place = self._place
        if place < len(self._window):
            self._place = place + 1
            return self._window[place]
        return self.take(1)[0]

    def _fill(self, count: int) -> None:
        at = self.at
        if count > self._size - at:
            raise ValueError(f"it ends at byte {self._size}, in the middle of its header")
        self._source.seek(at)
        window = self._source.read(min(max(count, _WINDOW), self._size - at))
        if len(window) < count:
            raise ValueError(f"it ends before byte {self._size}")
        self._base, self._place, self._window = at, 0, window
