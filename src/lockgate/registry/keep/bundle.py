"""A version as one file, for a site that no network reaches.

A tar of `lockgate.json` (what the publisher said, canonical JSON), `manifest.json`, and `frames/N`
files of wire frames: each object's digest and stored frame, bases before what is made from them.
"""

from __future__ import annotations

import json
import struct
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from lockgate.core import canonical
from lockgate.core.codec import to_json
from lockgate.core.digests import Digest, digest_of, from_raw, raw_of
from lockgate.core.errors import ConflictError, IntegrityError, LockgateError, UsageError
from lockgate.registry.catalog import Version
from lockgate.registry.manifest import Manifest, parse
from lockgate.registry.service import Details, Published, Registry
from lockgate.store.codec.decode import decode_checked
from lockgate.store.codec.frame import MAX_OBJECT
from lockgate.store.codec.frame import parse as parse_frame
from lockgate.store.durable import stream_durably
from lockgate.store.packs import PackStore

FORMAT = "lockgate/bundle@1"
Report = Callable[[int, int], None]
_HEAD = struct.Struct("<32sI")
_FILE_BYTES = 64 * 1024 * 1024
_MAX_TEXT = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """What a bundle holds: the model and version it was, and the bytes of the file."""

    model: str
    number: int
    digest: str
    size: int


def export_bundle(
    version: Version, manifest: Manifest, text: bytes, store: PackStore, path: Path,
    report: Report | None = None,
) -> Bundle:  # fmt: skip
    """Writes the version to `path`, which appears whole or not at all.

    Raises ConflictError when it is there, IntegrityError when a frame is damaged.
    """
    if path.exists():
        raise ConflictError(f"{path} is there already", hint="name a file that is new")
    wanted = _in_order(store, manifest)
    published = version.published
    head = canonical.encode(
        {"format": FORMAT, "published": to_json(published), "objects": len(wanted)}
    )
    parts = _tar(head, text, _files(store, wanted, report))
    path.parent.mkdir(parents=True, exist_ok=True)
    stream_durably(path, parts, path.parent)
    return Bundle(model=published.model, number=version.number, digest=version.digest,
                  size=path.stat().st_size)  # fmt: skip


def _in_order(store: PackStore, manifest: Manifest) -> list[Digest]:
    """Returns the objects that the version needs, each after what it is made from."""
    ordered: dict[Digest, None] = {}

    def visit(digest: Digest) -> None:
        if digest not in ordered:
            for base in store.bases(digest):
                visit(base)
            ordered[digest] = None

    for digest in manifest.objects():
        visit(digest)
    return list(ordered)


def _files(store: PackStore, wanted: list[Digest], report: Report | None) -> Iterator[bytes]:
    held: list[bytes] = []
    size = 0
    for count, digest in enumerate(wanted):
        if report:
            report(count, len(wanted))
        data = store.frame_bytes(digest)
        parse_frame(data)
        held += [_HEAD.pack(raw_of(digest), len(data)), data]
        size += len(data)
        if size > _FILE_BYTES:
            yield b"".join(held)
            held, size = [], 0
    if held:
        yield b"".join(held)


def _tar(head: bytes, text: bytes, files: Iterator[bytes]) -> Iterator[bytes]:
    yield from _member("lockgate.json", head)
    yield from _member("manifest.json", text)
    for number, data in enumerate(files):
        yield from _member(f"frames/{number:06}", data)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _member(name: str, data: bytes) -> Iterator[bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o644
    yield info.tobuf(tarfile.USTAR_FORMAT)
    yield data
    yield bytes(-len(data) % tarfile.BLOCKSIZE)


def import_bundle(
    path: Path, registry: Registry, store: PackStore, *, actor: str, model: str | None = None,
    report: Report | None = None,
) -> Published:  # fmt: skip
    """Stores what a bundle holds, every object decoded and checked, and makes it a version.

    `model` gives it another name. Raises IntegrityError for a bundle that is not sound, before
    anything becomes true; what it brought is garbage then.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            head = _head(_text(archive, "lockgate.json"))
            text = _text(archive, "manifest.json")
            manifest = parse(text)
            _take(archive, store, manifest, head["objects"], report)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise IntegrityError(f"{path} is not a sound bundle: {error}") from error
    published = head["published"]
    if digest_of(text) != published["digest"]:
        raise IntegrityError(f"{path} is not a sound bundle: its manifest has another digest")
    details = Details(
        environment=published.get("environment", {}),
        dependencies=tuple(published.get("dependencies", ())),
        source_revision=published.get("source_revision"),
        labels=published.get("labels", {}),
        bytes_new=0,
    )
    return registry.commit(model or str(published["model"]), text, details, actor=actor)


def _head(text: bytes) -> dict[str, Any]:
    try:
        body = json.loads(text)
        sound = body["format"] == FORMAT and isinstance(body["published"], dict)
        sound = sound and isinstance(body["objects"], int)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise IntegrityError(f"the bundle's head can't be read: {error}") from error
    if not sound:
        raise IntegrityError("the bundle's head is of another format")
    found: dict[str, Any] = body
    return found


def _text(archive: tarfile.TarFile, name: str) -> bytes:
    member = archive.next()
    if member is None or member.name != name or not member.isreg() or member.size > _MAX_TEXT:
        raise IntegrityError(f"the bundle has no {name} where one must be")
    file = archive.extractfile(member)
    return file.read() if file else b""


def _take(
    archive: tarfile.TarFile, store: PackStore, manifest: Manifest, total: int,
    report: Report | None,
) -> None:  # fmt: skip
    count = 0
    try:
        while (member := archive.next()) is not None:
            file = archive.extractfile(member)
            if file is None or not member.isreg() or not member.name.startswith("frames/"):
                raise IntegrityError(f"the bundle holds {member.name!r}, which is no frames")
            for digest, data in _frames(file):
                count += 1
                if report:
                    report(count, max(total, count))
                if store.missing({digest: parse_frame(data).size}):
                    frame = parse_frame(data)
                    decode_checked(digest, frame, store.get, store.kernel)
                    store.put_frame(digest, frame)
        store.flush(())
    except LockgateError as error:
        store.discard(manifest.objects())
        if isinstance(error, UsageError):
            raise
        raise IntegrityError(f"the bundle is not sound: {error.message}") from error


def _frames(file: IO[bytes]) -> Iterator[tuple[Digest, bytes]]:
    while head := file.read(_HEAD.size):
        if len(head) < _HEAD.size:
            raise IntegrityError("it ends inside a frame's head")
        raw, size = _HEAD.unpack(head)
        if size > MAX_OBJECT + 65536:
            raise IntegrityError("a frame is too large")
        data = file.read(size)
        if len(data) < size:
            raise IntegrityError("it ends inside a frame")
        yield from_raw(raw), data
