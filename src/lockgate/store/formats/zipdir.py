"""The members of a zip file that are stored as they are, and where their bytes lie.

Layout: PKWARE's APPNOTE.TXT, sections 4.3 and 4.5.3 (zip64). The directory at the end is a
stranger's: every offset is checked before it is followed, and what is held in memory is bounded.
Python's `zipfile` would read a directory of any length, and does not say where the bytes are.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

MAGIC = b"PK\x03\x04"
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_MAX_DIRECTORY = 64 * 1024 * 1024
_MAX_MEMBERS = 300_000
_ENCRYPTED = 0x2041
_FULL = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A file in the archive; `header` is the offset of its own header, `size` is in bytes."""

    name: bytes
    header: int
    size: int
    stored: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Directory:
    """The members by name, and where in the file the directory begins."""

    members: dict[bytes, Member]
    begin: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """The bytes of a member: from `begin` to `end`; its own header lies at `header`."""

    header: int
    begin: int
    end: int


def read_directory(source: BinaryIO, size: int) -> Directory:
    """Returns the central directory; raises ValueError when it is not sound, or is too long."""
    begin, length, count = _find(source, size)
    if count > _MAX_MEMBERS or count * _CENTRAL.size > length or length > _MAX_DIRECTORY:
        raise ValueError("its directory can't hold so many members")
    source.seek(begin)
    data = source.read(length)
    members: dict[bytes, Member] = {}
    at = 0
    for _ in range(count):
        member, at = _member(data, at)
        if member.name in members:
            raise ValueError("two members have one name")
        members[member.name] = member
    if at != len(data):
        raise ValueError("its directory has another length than it says")
    return Directory(members=members, begin=begin)


def _find(source: BinaryIO, size: int) -> tuple[int, int, int]:
    """Returns where the directory begins, its length in bytes and its number of members."""
    tail = min(size, _END.size + 0xFFFF)
    source.seek(size - tail)
    data = source.read(tail)
    place = data.rfind(b"PK\x05\x06")
    if place < 0 or place + _END.size > len(data):
        raise ValueError("it has no directory")
    _, disk, first, here, count, length, begin, comment = _END.unpack_from(data, place)
    end = size - tail + place
    if end + _END.size + comment != size:
        raise ValueError("bytes follow its directory")
    locator = data[place - _LOCATOR.size : place] if place >= _LOCATOR.size else b""
    if locator[:4] == b"PK\x06\x07":
        end, disk, first, here, count, length, begin = _find64(source, end, locator)
    if disk or first or here != count or begin + length != end:
        raise ValueError("its directory is not where it should be")
    return begin, length, count


def _find64(source: BinaryIO, end: int, locator: bytes) -> tuple[int, ...]:
    place = _LOCATOR.unpack(locator)[2]
    if place + _END64.size + _LOCATOR.size > end:
        raise ValueError("its zip64 directory is out of bounds")
    source.seek(place)
    mark, _, _, _, disk, first, here, count, length, begin = _END64.unpack(
        _exactly(source, _END64.size)
    )
    if mark != b"PK\x06\x06":
        raise ValueError("it has no zip64 directory")
    return place, disk, first, here, count, length, begin


def _exactly(source: BinaryIO, count: int) -> bytes:
    data = source.read(count)
    if len(data) < count:
        raise ValueError("it ends too early")
    return data


def _member(data: bytes, at: int) -> tuple[Member, int]:
    """Returns the member whose entry begins at `at`, and where the next entry begins."""
    if at + _CENTRAL.size > len(data):
        raise ValueError("its directory ends too early")
    fields = _CENTRAL.unpack_from(data, at)
    mark, flags, method, packed, size = fields[0], fields[3], fields[4], fields[8], fields[9]
    name_length, extra_length, comment_length, header = *fields[10:13], fields[16]
    name = at + _CENTRAL.size
    extra = name + name_length
    after = extra + extra_length + comment_length
    if mark != b"PK\x01\x02" or after > len(data):
        raise ValueError("its directory is not sound")
    wide = _wide(data[extra : extra + extra_length])
    size, packed, header = (
        next(wide) if value == _FULL else value for value in (size, packed, header)
    )
    stored = method == 0 and packed == size and not flags & _ENCRYPTED
    member = Member(name=data[name:extra], header=header, size=size, stored=stored)
    return member, after


def _wide(extra: bytes) -> Iterator[int]:
    """Yields the 64-bit values of the zip64 field; raises ValueError when there are no more."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1 and at + 4 + length <= len(extra):
            for place in range(at + 4, at + 4 + length - 7, 8):
                yield struct.unpack_from("<Q", extra, place)[0]
            break
        at += 4 + length
    raise ValueError("a zip64 value is missing")


def extent(source: BinaryIO, member: Member, directory: Directory) -> Extent:
    """Returns where a stored member's bytes are, as its own header says.

    Raises ValueError when it is compressed, encrypted, out of bounds, or called otherwise there.
    """
    if not member.stored or member.header + _LOCAL.size > directory.begin:
        raise ValueError("a member is not stored as it is")
    source.seek(member.header)
    fields = _LOCAL.unpack(_exactly(source, _LOCAL.size))
    mark, flags, method, name_length, extra_length = *fields[:1], *fields[2:4], *fields[9:]
    begin = member.header + _LOCAL.size + name_length + extra_length
    if mark != MAGIC or method or flags & _ENCRYPTED or begin + member.size > directory.begin:
        raise ValueError("a member's header is not sound")
    if _exactly(source, name_length) != member.name:
        raise ValueError("a member has two names")
    return Extent(header=member.header, begin=begin, end=begin + member.size)


def check_apart(extents: Iterable[Extent]) -> None:
    """Raises ValueError when two members share a byte."""
    at = 0
    for one in sorted(extents, key=lambda one: one.header):
        if one.header < at:
            raise ValueError("members overlap")
        at = one.end
