"""`Objects` in packs, on any backend: encoded when they come, decoded and checked when they go.

format              which layout this is
packs/ab/ab….pack   immutable packs (see `pack`), named by 128 random bits
damaged/…           names of entries that were found damaged: a put stores them anew
condemned           what garbage collection will sweep (see `collect`)
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from lockgate.core.digests import Digest, digest_of, hex_of, is_digest, raw_of, short
from lockgate.core.errors import IntegrityError, NotFoundError
from lockgate.store.blobs.api import Blobs
from lockgate.store.codec.decode import decode, decode_checked
from lockgate.store.codec.dtypes import PIECE_BYTES, Buffer, Object
from lockgate.store.codec.encode import Encoder
from lockgate.store.codec.frame import Fetch, Frame, parse
from lockgate.store.codec.frame import pack as pack_frame
from lockgate.store.codec.kernel import Kernel, kernel
from lockgate.store.held import Held
from lockgate.store.index import Index, Place
from lockgate.store.pack import FOLDER, Entries, Packed, read_index
from lockgate.store.writing import Writer, pack_name

FORMAT = b"lockgate/store@2\n"
HELD_BYTES = 32 * 1024 * 1024
_REFRESH_S = 0.5
_DAMAGED = "damaged/"
CONDEMNED = "condemned"


class PackStore:
    """`Objects` on `blobs`; safe for threads, and for many processes on one backend.

    Holds up to one pack of frames (64 MiB), half as much of decoded bases, and the index.
    `near`, when set, returns an object's bytes from where they lie decoded on this machine, or
    None; they are checked like any others. Without `writes` nothing is changed, notes on damage
    included; a place that is no store raises NotFoundError then.
    """

    batch_bytes = PIECE_BYTES

    def __init__(self, blobs: Blobs, *, codec: Kernel | None = None, writes: bool = True) -> None:
        self.blobs = blobs
        self._writes = writes
        self.kernel = codec or kernel()
        self.near: Callable[[Digest], Buffer | None] | None = None
        self._lock = threading.RLock()
        self._index = Index()
        self._writer = Writer(blobs, self._take_up)
        self._looked = 0.0
        self._condemned: frozenset[tuple[Digest, str]] = frozenset()
        self._held = Held(HELD_BYTES)
        self._encoder = Encoder(
            kernel=self.kernel, fetch=self._base, depth=self.depth, bases=self.bases
        )
        self._check_format()
        self.refresh()

    def _check_format(self) -> None:
        try:
            found = self.blobs.read("format")
        except NotFoundError:
            if not self._writes:
                raise NotFoundError("there is no store", hint="name where one is") from None
            self.blobs.write("format", [FORMAT])
            return
        if found != FORMAT:
            raise IntegrityError(
                f"the store has the format {found[:40]!r}, not {FORMAT!r}",
                hint="another lockgate wrote it; use that one",
            )

    @property
    def stored(self) -> int:
        """The bytes of all frames that were put since this store was opened."""
        return self._writer.stored

    def refresh(self) -> None:
        """Takes up packs that others wrote or removed."""
        there = {blob.name: blob.size for blob in self.blobs.list(FOLDER)}
        with self._lock:
            known = self._index.packs
        for name in sorted(set(there) - known):
            try:
                entries, deps = read_index(self.blobs, name, there[name])
            except NotFoundError:
                continue
            self._take_up(name, entries, deps)
        hidden = [blob.name.removeprefix(_DAMAGED).split(".") for blob in self.blobs.list(_DAMAGED)]
        with self._lock:
            self._index.remove(set(known) - set(there))
            for digest, pack in hidden:
                self._index.hide(Digest("blake3:" + digest), pack_name(pack))
            self._looked = time.monotonic()
        self.condemned()

    def condemned(self) -> frozenset[tuple[Digest, str]]:
        """Returns the objects, and the packs they are in, that are to be swept.

        They still can be read, and are `missing` to who wants to build on them.
        """
        try:
            text = self.blobs.read(CONDEMNED).decode("utf-8")
            pairs = (line.split(" ") for line in text.splitlines()[1:])
            found = frozenset((Digest(digest), pack) for digest, pack in pairs)
        except NotFoundError:
            found = frozenset()
        with self._lock:
            self._condemned = found
        return found

    # ---- what is here

    def place(self, digest: Digest) -> Place | None:
        """Returns where an object's frame is in a pack, None when it is in none."""
        with self._lock:
            return self._index.find(digest)

    def _size(self, digest: Digest) -> int:
        waiting = self._writer.find(digest)
        if waiting:
            return waiting.size
        with self._lock:
            place = self._index.find(digest)
            gone = place is None or (digest, place.pack) in self._condemned
        return -1 if gone or place is None else place.size

    def missing(self, sizes: Mapping[Digest, int]) -> set[Digest]:
        """See `Objects.missing`."""
        absent = self._absent(sizes)
        if absent and time.monotonic() - self._looked > _REFRESH_S:
            self.refresh()
            absent = self._absent({digest: sizes[digest] for digest in absent})
        return absent

    def _absent(self, sizes: Mapping[Digest, int]) -> set[Digest]:
        return {
            digest
            for digest, size in sizes.items()
            if self._size(digest) != size or not self._whole(digest)
        }

    def _whole(self, digest: Digest) -> bool:
        """Says whether all that an object is made from is here."""
        return all(self._size(base) >= 0 and self._whole(base) for base in self.bases(digest))

    def depth(self, digest: Digest) -> int | None:
        """Returns the length of an object's chain of bases, None when it is not here."""
        waiting = self._writer.find(digest)
        place = None if waiting else self.place(digest)
        return waiting.depth if waiting else place.depth if place else None

    def bases(self, digest: Digest) -> tuple[Digest, ...]:
        """Returns what an object's frame depends on; nothing when it is not here."""
        waiting = self._writer.find(digest)
        if waiting:
            return waiting.deps
        with self._lock:
            return self._index.deps(digest)

    def closure(self, digests: Iterable[Digest]) -> set[Digest]:
        """Returns the objects and all that they are made from, those included that are not here."""
        found: set[Digest] = set()
        level = list(digests)
        while level:
            digest = level.pop()
            if digest not in found:
                found.add(digest)
                level.extend(self.bases(digest))
        return found

    def digests(self) -> Iterator[Digest]:
        """See `Objects.digests`."""
        with self._lock:
            found = set(self._index.digests()) | self._writer.digests()
        yield from sorted(found)

    def packs(self) -> frozenset[str]:
        """Returns the names of the packs."""
        with self._lock:
            return self._index.packs

    # ---- reading

    def frame_bytes(self, digest: Digest) -> bytes:
        """Returns an object's frame as it is stored; raises NotFoundError, IntegrityError."""
        for attempt in range(2):
            waiting = self._writer.find(digest)
            if waiting:
                return waiting.data
            place = self.place(digest)
            if place is not None:
                try:
                    return self.blobs.read(place.pack, place.offset, place.length)
                except NotFoundError:
                    pass  # collected by another process: look where it went
            if not attempt:
                self.refresh()
        raise not_here(digest)

    def frame(self, digest: Digest) -> Frame:
        """Returns an object's frame, its checksum checked; raises NotFoundError, IntegrityError."""
        return parse(self.frame_bytes(digest))

    def get(self, digest: Digest) -> Buffer:
        """See `Objects.get`."""
        try:
            return self._read(digest)
        except IntegrityError:
            return self._second_look(digest)

    def _read(self, digest: Digest) -> Buffer:
        found = self.near(digest) if self.near else None
        if found is not None and digest_of(found) == digest:
            return found
        # the digest of what comes out says more than the checksum of what goes in
        frame = parse(self.frame_bytes(digest), check=False)
        return decode_checked(digest, frame, self._source(frame), self.kernel)

    def _base(self, digest: Digest) -> Buffer:
        """Returns a base's bytes, checked, and keeps the last of them at hand."""
        return self._held.get(digest, self.get, checked=True)

    def _source(self, frame: Frame) -> Fetch:
        """Returns what gives a frame's bases, unchecked: what is made of them will be compared."""
        keep = bool(frame.parts) or len(frame.deps) > 1  # used whole, it is seldom used again
        return lambda digest: self._held.get(digest, self._decode, checked=False, keep=keep)

    def _decode(self, digest: Digest) -> Buffer:
        found = self.near(digest) if self.near else None
        if found is not None:
            return found
        frame = parse(self.frame_bytes(digest), check=False)
        return decode(frame, self._source(frame), self.kernel)

    def _second_look(self, digest: Digest) -> Buffer:
        """Reads a damaged object once more; if it stays so, hides it, so that a put heals it.

        Raises IntegrityError when it is still damaged.
        """
        self._held.clear()
        try:
            return decode_checked(digest, self.frame(digest), self._base, self.kernel)
        except IntegrityError as error:
            place = self.place(digest)
            if place is not None and self._writes and not self._base_is_hurt(digest):
                self._hide(digest, place)
            raise IntegrityError(
                f"object {short(digest)} is damaged: {error.message}",
                hint="run 'lockgate verify' to see which versions it hurts",
            ) from error

    def _base_is_hurt(self, digest: Digest) -> bool:
        return any(self._is_hurt(base) for base in self.bases(digest))

    def _is_hurt(self, digest: Digest) -> bool:
        try:
            self._read(digest)
        except (IntegrityError, NotFoundError):
            return True
        return False

    def _hide(self, digest: Digest, place: Place) -> None:
        name = place.pack.removeprefix(FOLDER).split("/")[-1].removesuffix(".pack")
        self.blobs.write(f"{_DAMAGED}{hex_of(digest)}.{name}", [b"\n"])
        with self._lock:
            self._index.hide(digest, place.pack)

    # ---- writing

    def put(self, objects: Iterable[Object]) -> None:
        """See `Objects.put`. What comes is at hand at once, and durable after `flush`."""
        for given in objects:
            if not given.hashed and digest_of(given.data) != given.digest:
                raise IntegrityError(
                    f"object {short(given.digest)} is damaged: its {len(given.data)} bytes "
                    "have another digest",
                    hint="it changed on its way here: send it again",
                )
            self._put(given)

    def _put(self, given: Object) -> None:
        if self._size(given.digest) == len(given.data):
            return
        encoded = self._encoder.encode(given)
        for extra in encoded.beside:
            self._put(extra)
        self.put_frame(given.digest, encoded.frame)

    def put_frame(self, digest: Digest, frame: Frame) -> None:
        """Puts a frame that was proved to give the bytes of that digest."""
        self._pend(digest, frame, pack_frame(frame))

    def _pend(self, digest: Digest, frame: Frame, data: bytes) -> None:
        self._writer.add(
            Packed(digest=digest, data=data, size=frame.size, codec=frame.codec,
                   depth=frame.depth, deps=frame.deps)
        )  # fmt: skip

    def _take_up(self, name: str, entries: Entries, deps: bytes) -> None:
        with self._lock:
            self._index.add(name, entries, deps)

    def flush(self, digests: Iterable[Digest]) -> None:
        """See `Objects.flush`; what others made durable is seen afterwards too."""
        self._writer.write()
        wanted = list(digests)
        if not wanted or any(self._size(digest) < 0 for digest in wanted):
            self.refresh()
        for digest in wanted:
            if self._size(digest) < 0:
                raise not_here(digest)

    def discard(self, digests: Iterable[Digest]) -> None:
        """See `Objects.discard`: what waits is dropped, and packs that hold nothing else go.

        The rest is left to garbage collection.
        """
        loose = set(digests)
        self._writer.drop(loose)
        with self._lock:
            raws = {raw_of(digest) for digest in loose}
            gone = set()
            for name in self._index.packs:
                entries = self._index.entries(name)
                if len(entries) <= len(raws):
                    joined = entries["digest"].tobytes()
                    if all(joined[at : at + 32] in raws for at in range(0, len(joined), 32)):
                        gone.add(name)
            self._index.remove(gone)
        self._held.clear()
        self.blobs.remove(sorted(gone))

    # ---- care (see `collect`)

    def entries(self, pack: str) -> Entries:
        """Returns the index entries of a pack."""
        with self._lock:
            return self._index.entries(pack)

    def move(self, digests: Iterable[Digest], pack: str, *, wait: bool = False) -> None:
        """Writes the frames of objects of `pack` into a new one; with `wait`, at the next flush.

        Frames are moved as they are, their checksums checked. Raises IntegrityError, before the
        old pack is touched, when one is damaged.
        """
        for digest in digests:
            with self._lock:
                place = self._index.find(digest)
            if place is None or place.pack != pack:
                continue
            data = self.blobs.read(place.pack, place.offset, place.length)
            self._pend(digest, parse(data), data)
        if not wait:
            self._writer.write()

    def encode_anew(self, given: Object, worth: float) -> int:
        """Encodes a stored object with what it may be made from now; `given.data` is not looked at.

        Keeps the new frame when it has at most `worth` of the old one's bytes; the old entry is
        then garbage. Returns the bytes saved. An object is never made from what is made from it.
        """
        place = self.place(given.digest)
        if place is None:
            return 0
        made = replace(given, data=bytes(self.get(given.digest)), hashed=True)
        encoded = self._encoder.encode(made)
        size = sum(len(extra.data) for extra in encoded.beside) + len(pack_frame(encoded.frame))
        if size > worth * place.length:
            return 0
        for extra in encoded.beside:
            self._put(extra)
        self.put_frame(given.digest, encoded.frame)
        return place.length - size

    def remove_packs(self, names: Iterable[str]) -> None:
        """Removes packs; the caller knows that nothing in them is needed."""
        gone = set(names)
        self.blobs.remove(sorted(gone))
        with self._lock:
            self._index.remove(gone)

    def close(self) -> None:
        """Writes what waits and closes the backend."""
        self._writer.write()
        self.blobs.close()


def not_here(digest: Digest) -> NotFoundError:
    """Returns the error for an object that the store does not have."""
    what = short(digest) if is_digest(digest) else digest[:80]
    return NotFoundError(f"object {what} is not in this store")
