"""Blobs in an object store, through obstore. Only S3 is tested, against Ceph's radosgw.

What this module is built around:

* `obstore.get_ranges` panics when a joined range ends early, so ranges are joined here.
* A range that begins where the object ends is 416, not empty; one that passes the end is cut.
* radosgw takes only the unquoted ETag in If-Match, so none is sent: the pieces of one read are
  compared by the ETags that come back.
* radosgw enforces If-None-Match only in buckets without versioning: nothing rests on it.
"""

from __future__ import annotations

import re
import uuid
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain
from typing import TYPE_CHECKING, Any

from lockgate.core.errors import (
    DeniedError,
    LockgateError,
    PermanentError,
    TemporaryError,
    UsageError,
)
from lockgate.store.blobs.api import (
    BackendOptions,
    Blob,
    absent,
    check_name,
    check_ranges,
    cut,
    is_name,
    is_prefix,
    too_short,
)

if TYPE_CHECKING:
    from obstore.store import ObjectStore

PART_BYTES = 8 * 1024 * 1024
"""One part of an upload; S3 takes 10,000 of them, so a blob has 78 GiB at most."""
_PARTS_IN_FLIGHT = 4
_PIECE_BYTES = 16 * 1024 * 1024
_GAP_BYTES = 256 * 1024
_THREADS = 8
_AT_ONCE = 1000
_REFUSED = re.compile(r"status code: 40[13]\b")
_PASSES = re.compile(r"status code: (408|429|5\d\d)|HTTP error|sending request|[Tt]imed? ?out")


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What an object store was seen to do; for people to know, nothing rests on it."""

    conditional_create: bool


class S3Blobs:
    """`Blobs` below `s3://bucket/prefix`; the bucket must exist.

    `gs://` and `az://` addresses are opened too, with what the environment says; untested.
    Raises UsageError when obstore is not installed or the address makes no sense.
    """

    def __init__(self, url: str, options: BackendOptions) -> None:
        try:
            import obstore
            from obstore.store import from_url
        except ImportError as error:
            raise UsageError(
                f"{url} needs the package obstore, which is not installed",
                hint="pip install 'lockgate[s3]'",
            ) from error
        self._obstore = obstore
        self._url = url
        self._secret = options.secret_key
        try:
            self._store: ObjectStore = from_url(url, **_settings(url, options))
        except (obstore.exceptions.BaseError, ValueError, TypeError) as error:
            raise UsageError(f"{url} can't be opened: {self._said(error)}") from None
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="lockgate-s3")

    def write(self, name: str, parts: Iterable[bytes | memoryview]) -> int:
        """See `Blobs.write`: one request up to 8 MiB, a multipart upload above."""
        check_name(name)
        source = _Source(parts)
        with self._errors(f"blob {name} can't be written", name, source):
            first, second = next(source, b""), next(source, None)
            if second is None:
                self._obstore.put(self._store, name, first, use_multipart=False)
            else:
                self._obstore.put(
                    self._store,
                    name,
                    chain((first, second), source),
                    use_multipart=True,
                    chunk_size=PART_BYTES,
                    max_concurrency=_PARTS_IN_FLIGHT,
                )
        return source.size

    def read(self, name: str, begin: int = 0, size: int | None = None) -> bytes:
        """See `Blobs.read`."""
        if size is not None:
            return self.read_ranges(name, [(begin, size)])[0]
        check_ranges([(begin, 0)])
        total = self._size(name) if begin else None
        if total is not None and begin >= total:
            return self._nothing(name, begin, total)
        with self._errors(f"blob {name} can't be read", check_name(name)):
            found = self._get(name, begin, None)
            rest = found.meta["size"] - begin
            if rest <= _PIECE_BYTES:
                return bytes(found.bytes())
        return self.read_ranges(name, [(begin, rest)])[0]

    def _nothing(self, name: str, begin: int, total: int) -> bytes:
        if begin > total:
            raise too_short(name, begin, None)
        return b""

    def _size(self, name: str) -> int:
        with self._errors(f"blob {name} can't be read", check_name(name)):
            return int(self._obstore.head(self._store, name)["size"])

    def _get(self, name: str, begin: int, end: int | None) -> Any:
        if end is None and not begin:
            return self._obstore.get(self._store, name)
        wanted: Any = {"offset": begin} if end is None else (begin, end)
        return self._obstore.get(self._store, name, options={"range": wanted})

    def read_ranges(self, name: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """See `Blobs.read_ranges`: near ranges share a request, up to 8 requests at a time."""
        check_name(name)
        check_ranges(ranges)
        if any(not size for _, size in ranges):
            total = self._size(name)
            for begin, size in ranges:
                if begin + size > total:
                    raise too_short(name, begin, size)
        pieces = _join(ranges)
        with self._errors(f"blob {name} can't be read", name):
            if len(pieces) == 1:
                found = [self._piece(name, *pieces[0])]
            else:
                found = list(self._pool.map(lambda piece: self._piece(name, *piece), pieces))
        if len({tag for tag, _ in found}) > 1:
            raise TemporaryError(f"blob {name} was replaced while it was read", retry_in=0.1)
        begins = [begin for begin, _ in pieces]
        return [_slice(begins, [data for _, data in found], begin, n) for begin, n in ranges]

    def _piece(self, name: str, begin: int, end: int) -> tuple[str, memoryview]:
        """Returns a piece and the ETag of the blob it is from."""
        try:
            found = self._get(name, begin, end)
            data = found.bytes()
        except self._obstore.exceptions.GenericError as error:
            if "status code: 416" in str(error):
                raise too_short(name, begin, end - begin) from None
            raise
        if len(data) != end - begin:
            raise too_short(name, begin, end - begin)
        return str(found.meta["e_tag"]), memoryview(data)

    def list(self, prefix: str = "") -> Iterator[Blob]:
        """See `Blobs.list`. Objects whose names no blob can have are left out."""
        if not is_prefix(prefix):
            return
        whole = is_name(prefix)
        with self._errors(f"{self._url} can't be listed", prefix):
            if whole:
                with suppress(FileNotFoundError):
                    yield _blob(self._obstore.head(self._store, prefix))
            pages = self._obstore.list(
                self._store,
                prefix.rpartition("/")[0] or None,
                offset=prefix or None,
                chunk_size=_AT_ONCE,
            )
            for meta in chain.from_iterable(pages):
                if not meta["path"].startswith(prefix):
                    return  # all that begin with it came before
                if is_name(meta["path"]):
                    yield _blob(meta)

    def remove(self, names: Iterable[str]) -> None:
        """See `Blobs.remove`: up to 1,000 names a request."""
        wanted = [check_name(name) for name in names]
        for at in range(0, len(wanted), _AT_ONCE):
            batch = wanted[at : at + _AT_ONCE]
            with self._errors(f"{len(batch)} blobs can't be removed", batch[0]):
                self._obstore.delete(self._store, batch)

    def close(self) -> None:
        """See `Blobs.close`."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def create(self, name: str, data: bytes) -> bool:
        """Stores `data` if there is no such blob; says whether the store says that it did."""
        with self._errors(f"blob {name} can't be written", check_name(name)):
            try:
                self._obstore.put(self._store, name, data, mode="create")
            except self._obstore.exceptions.AlreadyExistsError:
                return False
        return True

    @contextmanager
    def _errors(self, what: str, name: str, source: _Source | None = None) -> Iterator[None]:
        """Turns the client's errors into ours; those of `source` pass as they are."""
        try:
            yield
        except LockgateError:
            raise
        except (self._obstore.exceptions.BaseError, OSError, ValueError) as error:
            if source is not None and source.failed:
                raise
            raise self._ours(what, name, error) from None

    def _ours(self, what: str, name: str, error: Exception) -> LockgateError:
        known = self._obstore.exceptions
        said = self._said(error)
        if "169.254.169.254" in said:  # the last place where the client looks for credentials
            return DeniedError(
                f"{what}: there are no credentials for {self._url}",
                hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            )
        if "NoSuchBucket" in said:
            return UsageError(
                f"{what}: the bucket of {self._url} does not exist",
                hint="make the bucket first, or correct its name",
            )
        if isinstance(error, FileNotFoundError):
            return absent(name)
        refusals = known.PermissionDeniedError | known.UnauthenticatedError
        if isinstance(error, refusals) or _REFUSED.search(said):
            return DeniedError(
                f"{what}: {self._url} refuses these credentials: {said}",
                hint="set the right key of this bucket; RequestTimeTooSkewed: set the clock",
            )
        if re.search(
            r"status code: (408|429|5\d\d)|sending request|[Tt]imed? ?out|HTTP error", said
        ):
            return TemporaryError(f"{what}: {said}")
        return PermanentError(f"{what}: {said}")

    def _said(self, error: Exception) -> str:
        """Returns the client's message: without its debug part, its XML and the secret."""
        text = str(error).partition("\n")[0]
        code = re.search(r"<Code>(\w+)</Code>", text)
        text = text.partition("<?xml")[0].partition(": Error performing")[2] or text
        text = f"{text.strip().removesuffix(':')}{' ' + code[1] if code else ''}"
        return text.replace(self._secret, "…")[:300] if self._secret else text[:300]


class _Source:
    """The parts of an upload; knows how many bytes it gave and whether it failed itself."""

    def __init__(self, parts: Iterable[bytes | memoryview]) -> None:
        self._pieces = cut(parts, PART_BYTES)
        self.size = 0
        self.failed = False

    def __iter__(self) -> _Source:
        return self

    def __next__(self) -> bytes:
        try:
            piece = next(self._pieces)
        except StopIteration:
            raise
        except BaseException:
            self.failed = True
            raise
        self.size += len(piece)
        return piece


def _settings(url: str, options: BackendOptions) -> dict[str, Any]:
    """Returns what obstore is told; what is None here it looks for in the environment."""
    config = {
        "endpoint": options.endpoint,
        "region": options.region,
        "access_key_id": options.access_key,
        "secret_access_key": options.secret_key,
        "virtual_hosted_style_request": options.virtual_hosted or None,
    }
    plain = options.allow_http or (options.endpoint or "").startswith("http://")
    settings: dict[str, Any] = {
        "client_options": {"connect_timeout": "5s", "read_timeout": "60s", "timeout": "300s"}
        | ({"allow_http": True} if plain else {}),
        "retry_config": {
            "max_retries": 3,
            "retry_timeout": timedelta(seconds=60),
            "backoff": {"init_backoff": timedelta(milliseconds=200)},
        },
    }
    if url.startswith("s3"):
        settings["config"] = {key: value for key, value in config.items() if value is not None}
    return settings


def _join(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Returns the (begin, end) to ask for: near ranges joined, long ones split, in order."""
    runs: list[tuple[int, int]] = []
    for begin, size in sorted(item for item in ranges if item[1]):
        if runs and begin <= runs[-1][1] + _GAP_BYTES:
            runs[-1] = (runs[-1][0], max(runs[-1][1], begin + size))
        else:
            runs.append((begin, begin + size))
    return [
        (at, min(at + _PIECE_BYTES, end))
        for begin, end in runs
        for at in range(begin, end, _PIECE_BYTES)
    ]


def _slice(begins: list[int], pieces: list[memoryview], begin: int, size: int) -> bytes:
    """Returns `size` bytes from `begin` on out of the pieces that begin at `begins`."""
    found: list[memoryview] = []
    while size:
        at = bisect_right(begins, begin) - 1
        part = pieces[at][begin - begins[at] :][:size]
        found.append(part)
        begin += len(part)
        size -= len(part)
    return b"".join(found)


def _blob(meta: Any) -> Blob:
    at = float(int(meta["last_modified"].timestamp()))  # a HEAD knows no fractions, a list does
    return Blob(name=meta["path"], size=meta["size"], modified=at)


def probe(blobs: S3Blobs) -> Capabilities:
    """Finds out what the object store can do, with one small blob that is removed again."""
    name = f"probe/{uuid.uuid4().hex}"
    try:
        enforced = blobs.create(name, b"1") and not blobs.create(name, b"2")
    finally:
        blobs.remove([name])
    return Capabilities(conditional_create=enforced)
