"""Which raw files there are, and their bytes: bounded, never unpacked to disk."""

from __future__ import annotations

import gzip
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from lockgate.core.errors import UsageError

Kind = Literal["csv", "jsonl", "parquet", "sqlite"]
BLOCK = 1 << 20
_FREE = 1 << 24  # so much may come out of any archive, however small it is
_MEMBERS = 10_000
_KINDS: dict[str, Kind] = {
    ".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet",
    ".db": "sqlite", ".sqlite": "sqlite", ".sqlite3": "sqlite",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One raw file: its name for messages, its kind, bytes as they lie, and how it is opened."""

    name: str
    kind: Kind
    path: Path
    size: int
    open: Callable[[], IO[bytes] | Bounded]
    tabs: bool = False


class Bounded:
    """A stream that refuses to become more than `factor` times what it was made from."""

    def __init__(self, stream: IO[bytes], name: str, size: int, factor: int) -> None:
        self._stream = stream
        self._name = name
        self._limit = size * factor + _FREE
        self._read = 0

    def read(self, size: int) -> bytes:
        """Returns at most `size` bytes; raises UsageError for a bomb or a broken stream."""
        try:
            found = self._stream.read(size)
        except (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError) as error:
            raise UsageError(
                f"{self._name} is a broken archive after {self._read} bytes: {error}",
                hint="make the file again and publish it",
            ) from error
        self._read += len(found)
        if self._read > self._limit:
            raise UsageError(
                f"{self._name} unpacks to more than {self._limit} bytes, which looks like a bomb",
                hint="publish it unpacked, or raise expand_at_most",
            )
        return found

    def close(self) -> None:
        """Closes the stream."""
        self._stream.close()


def find_sources(folder: Path, patterns: Sequence[str], factor: int) -> list[Source]:
    """Returns the raw files of `folder` (or the one file that it is), sorted by name.

    `patterns`: globs over paths below the folder; empty: all files of a known kind. `factor`: how
    many times its size an archive may unpack to. Raises UsageError for links that leave the folder,
    hostile archives, or when nothing is left.
    """
    root = folder if folder.is_dir() else folder.parent
    paths = sorted(p for p in folder.rglob("*") if p.is_file()) if folder.is_dir() else [folder]
    found: list[Source] = []
    for path in paths:
        name = shown(path.relative_to(root).as_posix())
        if patterns and not any(fnmatch(name, pattern) for pattern in patterns):
            continue
        if not path.resolve().is_relative_to(root.resolve()):
            raise UsageError(f"{name} is a link that leaves the folder", hint="publish the file")
        found.extend(_sources(path, name, factor, asked=bool(patterns)))
    if not found:
        raise UsageError(
            "the source has no CSV, JSON lines, Parquet or SQLite file that was asked for",
            hint="names end with .csv .tsv .jsonl .ndjson (these also in .gz and .zip), "
            ".parquet .sqlite .sqlite3 .db",
        )
    return found


def shown(name: str) -> str:
    """Returns a file's name as it may stand in a sentence: on one line, in UTF-8."""
    return name if name.isprintable() else ascii(name)[1:-1]


def _sources(path: Path, name: str, factor: int, *, asked: bool) -> Iterator[Source]:
    size = path.stat().st_size
    if name.endswith((".tar", ".tgz", ".tar.gz")):
        raise UsageError(f"{name} is a tar archive", hint="publish the unpacked folder, or a .zip")
    if name.endswith(".zip"):
        yield from _members(path, name, size, factor)
        return
    packed = name.endswith(".gz")
    suffix = PurePosixPath(name.removesuffix(".gz")).suffix.lower()
    kind = _KINDS.get(suffix)
    if kind is None or (packed and kind in ("parquet", "sqlite")):
        if asked:
            raise UsageError(f"{name} is of no known kind", hint="leave it out of 'files'")
        return

    def opened() -> IO[bytes] | Bounded:
        if packed:
            return Bounded(gzip.open(path, "rb"), name, size, factor)  # type: ignore[arg-type]
        return path.open("rb")

    yield Source(name=name, kind=kind, path=path, size=size, open=opened, tabs=suffix == ".tsv")


def _members(path: Path, name: str, size: int, factor: int) -> Iterator[Source]:
    """Yields the tables in a zip archive; they are read where they are, so no path is written."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = [info for info in archive.infolist() if not info.filename.endswith("/")]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UsageError(f"{name} is no sound zip archive: {error}") from error
    total = sum(info.file_size for info in infos)
    if len(infos) > _MEMBERS or total > size * factor + _FREE:
        raise UsageError(
            f"{name} unpacks {size} bytes to {total} in {len(infos)} files: that looks like a bomb",
            hint="publish it unpacked, or raise expand_at_most",
        )
    for info in sorted(infos, key=lambda info: info.filename):
        _refuse_member(name, info)
        suffix = PurePosixPath(info.filename).suffix.lower()
        kind = _KINDS.get(suffix)
        if kind not in ("csv", "jsonl"):
            continue
        inner = f"{name}/{shown(info.filename)}"
        yield Source(
            name=inner, kind=kind, path=path, size=info.compress_size, tabs=suffix == ".tsv",
            open=_member_opener(path, info.filename, inner, size, factor),
        )  # fmt: skip


def _member_opener(
    path: Path, member: str, name: str, size: int, factor: int
) -> Callable[[], Bounded]:
    def opened() -> Bounded:
        try:
            stream = zipfile.ZipFile(path).open(member)  # noqa: SIM115
        except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, KeyError) as error:
            raise UsageError(f"{name} can't be unpacked: {error}") from error
        return Bounded(stream, name, size, factor)

    return opened


def _refuse_member(name: str, info: zipfile.ZipInfo) -> None:
    inner = info.filename
    parts = PurePosixPath(inner.replace("\\", "/")).parts
    if not parts:
        raise UsageError(f"{name} has a file without a name: {inner!r}", hint="pack again")
    if inner.startswith(("/", "\\")) or ".." in parts or ":" in parts[0]:
        raise UsageError(f"{name} has a path that leaves the folder: {inner!r}", hint="pack again")
    if stat.S_ISLNK(info.external_attr >> 16):
        raise UsageError(f"{name} has a link in it: {inner!r}", hint="pack the file itself")
    if info.flag_bits & 1:
        raise UsageError(f"{name} is encrypted: {inner!r}", hint="pack it without a password")


def blocks(source: Source, longest: int) -> Iterator[bytes]:
    """Yields the bytes of a file in blocks of about 1 MiB that end with a line's end.

    `longest`: bytes that one line may have. Raises UsageError, with the line, above that.
    """
    stream = source.open()
    lines, rest = 0, b""
    try:
        while part := stream.read(BLOCK):
            if not lines and not rest and part[:2] in (b"\xff\xfe", b"\xfe\xff"):
                raise UsageError(f"{source.name} is UTF-16", hint="write it as UTF-8")
            cut = part.rfind(b"\n") + 1
            if not cut:
                rest += part
            else:
                block, rest = rest + part[:cut], part[cut:]
                lines += block.count(b"\n")
                yield block
            if len(rest) > longest:
                raise UsageError(
                    f"{source.name}, line {lines + 1} is longer than {longest} bytes",
                    hint="is it a table? lines end with \\n or \\r\\n",
                )
        if rest:
            yield rest
    finally:
        stream.close()
