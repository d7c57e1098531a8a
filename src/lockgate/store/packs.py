"""`Objects` in packs, on any backend: encoded when they come, decoded and checked when they go.

    format              which layout this is
    packs/ab/ab….pack   immutable packs (see `pack`), named by 128 random bits
    damaged/…           names of entries that were found damaged: a put stores them anew
    condemned/…         what garbage collection will sweep (see `collect`)
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping

from lockgate.core.digests import Digest, digest_of, hex_of, is_digest, short
from lockgate.core.errors import IntegrityError, NotFoundError
from lockgate.store.blobs.api import Blobs
from lockgate.store.codec.decode import Buffer, decode, decode_checked
from lockgate.store.codec.encode import Encoder, Object
from lockgate.store.codec.frame import Frame, parse
from lockgate.store.codec.frame import pack as pack_frame
from lockgate.store.codec.kernel import Kernel, kernel
from lockgate.store.index import Index, Place
from lockgate.store.pack import FOLDER, Packed, compose, read_index

FORMAT = b"lockgate/store@2\n"
PACK_BYTES = 64 * 1024 * 1024
_DECODED = 64 * 1024 * 1024
_REFRESH_S = 0.5
_DAMAGED = "damaged/"


class PackStore:
    """`Objects` on `blobs`; safe for threads, and for many processes on one backend.

    Holds up to one pack of frames (64 MiB), as much of decoded bases, and the index in memory.
    """

    def __init__(self, blobs: Blobs, *, codec: Kernel | None = None) -> None:
        self.blobs = blobs
        self.kernel = codec or kernel()
        self._lock = threading.RLock()
        self._index = Index()
        self._pending: dict[Digest, Packed] = {}
        self._writing: dict[Digest, Packed] = {}
        self._pending_bytes = 0
        self._looked = 0.0
        self._decoded: OrderedDict[Digest, tuple[Buffer, bool]] = OrderedDict()
        self._decoded_bytes = 0
        self._encoder = Encoder(
            kernel=self.kernel, fetch=self._base, depth=self.depth, bases=self.bases
        )
        self._check_format()
        self.refresh()

    def _check_format(self) -> None:
        try:
            found = self.blobs.read("format")
        except NotFoundError:
            self.blobs.write("format", [FORMAT])
            return
        if found != FORMAT:
            raise IntegrityError(
                f"the store has the format {found[:40]!r}, not {FORMAT!r}",
                hint="another lockgate wrote it; use that one",
            )

    def refresh(self) -> None:
        """Takes up packs that others wrote or removed."""
        there = {blob.name: blob.size for blob in self.blobs.list(FOLDER)}
        with self._lock:
            known = self._index.packs
        for name in sorted(set(there) - known):
            try:
                entries, _ = read_index(self.blobs, name, there[name])
            except NotFoundError:
                continue
            with self._lock:
                self._index.add(name, entries)
        hidden = [blob.name.removeprefix(_DAMAGED).split(".") for blob in self.blobs.list(_DAMAGED)]
        with self._lock:
            self._index.remove(set(known) - set(there))
            for digest, pack in hidden:
                self._index.hide(Digest("blake3:" + digest), _pack_name(pack))
            self._looked = time.monotonic()

    # ---- what is here

    def place(self, digest: Digest) -> Place | None:
        """Returns where an object's frame is in a pack, None when it is in none."""
        with self._lock:
            return self._index.find(digest)

    def _waiting(self, digest: Digest) -> Packed | None:
        return self._pending.get(digest) or self._writing.get(digest)

    def _size(self, digest: Digest) -> int:
        with self._lock:
            waiting = self._waiting(digest)
            if waiting:
                return waiting.size
            place = self._index.find(digest)
        return place.size if place else -1

    def missing(self, sizes: Mapping[Digest, int]) -> set[Digest]:
        """See `Objects.missing`."""
        absent = {digest for digest, size in sizes.items() if self._size(digest) != size}
        if absent and time.monotonic() - self._looked > _REFRESH_S:
            self.refresh()
            absent = {digest for digest in absent if self._size(digest) != sizes[digest]}
        return absent

    def depth(self, digest: Digest) -> int | None:
        """Returns the length of an object's chain of bases, None when it is not here."""
        with self._lock:
            waiting = self._waiting(digest)
            place = None if waiting else self._index.find(digest)
        return waiting.depth if waiting else place.depth if place else None

    def bases(self, digest: Digest) -> tuple[Digest, ...]:
        """Returns what an object's frame depends on; raises NotFoundError."""
        return self.frame(digest).deps

    def digests(self) -> Iterator[Digest]:
        """See `Objects.digests`."""
        with self._lock:
            found = set(self._index.digests()) | set(self._pending) | set(self._writing)
        yield from sorted(found)

    def packs(self) -> frozenset[str]:
        """Returns the names of the packs."""
        with self._lock:
            return self._index.packs

    # ---- reading

    def frame_bytes(self, digest: Digest) -> bytes:
        """Returns an object's frame as it is stored; raises NotFoundError, IntegrityError."""
        for attempt in range(2):
            with self._lock:
                waiting = self._waiting(digest)
                place = None if waiting else self._index.find(digest)
            if waiting:
                return waiting.data
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
        # the digest of what comes out says more than the checksum of what goes in
        frame = parse(self.frame_bytes(digest), check=False)
        return decode_checked(digest, frame, self._part_of, self.kernel)

    def _base(self, digest: Digest) -> Buffer:
        """Returns a base's bytes, checked, and keeps the last of them at hand."""
        return self._held(digest, self.get)

    def _part_of(self, digest: Digest) -> Buffer:
        """Returns a base's bytes unchecked: what is made from them will be compared."""
        return self._held(digest, self._decode)

    def _decode(self, digest: Digest) -> Buffer:
        return decode(parse(self.frame_bytes(digest), check=False), self._part_of, self.kernel)

    def _held(self, digest: Digest, load: Callable[[Digest], Buffer]) -> Buffer:
        checked = load == self.get
        with self._lock:
            held = self._decoded.get(digest)
            if held is not None and (held[1] or not checked):
                self._decoded.move_to_end(digest)
                return held[0]
        data = load(digest)
        with self._lock:
            if digest in self._decoded:
                self._decoded_bytes -= len(self._decoded.pop(digest)[0])
            self._decoded[digest] = (data, checked)
            self._decoded_bytes += len(data)
            while self._decoded_bytes > _DECODED and len(self._decoded) > 1:
                self._decoded_bytes -= len(self._decoded.popitem(last=False)[1][0])
        return data

    def _second_look(self, digest: Digest) -> Buffer:
        """Reads a damaged object once more; if it stays so, hides it, so that a put heals it.

        Raises IntegrityError when it is still damaged.
        """
        with self._lock:
            self._decoded.clear()
            self._decoded_bytes = 0
        try:
            return decode_checked(digest, self.frame(digest), self._base, self.kernel)
        except IntegrityError as error:
            place = self.place(digest)
            if place is not None and not self._base_is_hurt(digest):
                self._hide(digest, place)
            raise IntegrityError(
                f"object {short(digest)} is damaged: {error.message}",
                hint="run 'lockgate verify' to see which versions it hurts",
            ) from error

    def _base_is_hurt(self, digest: Digest) -> bool:
        try:
            bases = self.bases(digest)
        except IntegrityError:
            return False
        return any(self._is_hurt(base) for base in bases)

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
        data = pack_frame(frame)
        packed = Packed(digest=digest, data=data, size=frame.size, codec=frame.codec,
                        depth=frame.depth, deps=frame.deps)  # fmt: skip
        with self._lock:
            if self._waiting(digest):
                return
            self._pending[digest] = packed
            self._pending_bytes += len(data)
            full = self._pending_bytes >= PACK_BYTES
        if full:
            self._write_pending()

    def _write_pending(self) -> None:
        with self._lock:
            batch, self._pending, self._pending_bytes = self._pending, {}, 0
            self._writing |= batch
        if not batch:
            return
        unique = secrets.token_hex(16)
        name = _pack_name(unique)
        parts, entries = compose(list(batch.values()))
        try:
            self.blobs.write(name, parts)
        except BaseException:
            with self._lock:
                self._forget(batch)
            raise
        with self._lock:
            self._index.add(name, entries)
            self._forget(batch)

    def _forget(self, batch: Mapping[Digest, Packed]) -> None:
        for digest, packed in batch.items():
            if self._writing.get(digest) is packed:
                del self._writing[digest]

    def flush(self, digests: Iterable[Digest]) -> None:
        """See `Objects.flush`; what others made durable is seen afterwards too."""
        self._write_pending()
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
        with self._lock:
            for digest in loose & set(self._pending):
                self._pending_bytes -= len(self._pending.pop(digest).data)
            raws = {bytes.fromhex(hex_of(digest)) for digest in loose}
            gone = set()
            for name in self._index.packs:
                entries = self._index.entries(name)
                if len(entries) <= len(raws):
                    joined = entries["digest"].tobytes()
                    if all(joined[at : at + 32] in raws for at in range(0, len(joined), 32)):
                        gone.add(name)
            for digest in loose:
                if digest in self._decoded:
                    self._decoded_bytes -= len(self._decoded.pop(digest)[0])
            self._index.remove(gone)
        self.blobs.remove(sorted(gone))

    def close(self) -> None:
        """Writes what waits and closes the backend."""
        self._write_pending()
        self.blobs.close()


def _pack_name(unique: str) -> str:
    return f"{FOLDER}{unique[:2]}/{unique}.pack"


def not_here(digest: Digest) -> NotFoundError:
    """Returns the error for an object that the store does not have."""
    what = short(digest) if is_digest(digest) else digest[:80]
    return NotFoundError(f"object {what} is not in this store")
