"""A frame → the bytes of its object."""

from __future__ import annotations

from lockgate.core.digests import Digest, digest_of, short
from lockgate.core.errors import IntegrityError
from lockgate.store.codec import drift, lowrank, recipes
from lockgate.store.codec.dtypes import WIDTHS, Buffer
from lockgate.store.codec.frame import (
    CAST,
    COPY,
    DELTA,
    MAX_SOURCE,
    PLANES,
    QUANTIZE,
    RAW,
    ZSTD,
    Fetch,
    Frame,
    same,
    source_of,
)
from lockgate.store.codec.kernel import Kernel

PLAIN, DRIFT, LOW_RANK = range(3)
"""What a difference is taken from: the source itself, it after a drift, it plus a product."""


def decode(frame: Frame, fetch: Fetch, kernel: Kernel) -> Buffer:
    """Returns the bytes that `frame` stands for, not yet compared with a digest.

    `fetch` gives the bytes of a dependency, checked. Raises IntegrityError for a frame that no
    encoder writes; what it may use of time and memory is bounded by the sizes in its head.
    """
    try:
        data = _decode(frame, fetch, kernel)
    except ValueError as error:
        raise IntegrityError(f"a stored frame can't be decoded: {error}") from error
    if len(data) != frame.size:
        raise IntegrityError(f"a stored frame gave {len(data)} bytes, not {frame.size}")
    return data


def holds(frame: Frame, data: Buffer, fetch: Fetch, kernel: Kernel) -> bool:
    """Says whether `decode` would return `data`; raises what it raises.

    What the kernel decodes it compares while it is in the cache.
    """
    if len(data) != frame.size or frame.codec not in (PLANES, DELTA):
        return same(decode(frame, fetch, kernel), data)
    try:
        if frame.codec == PLANES:
            kind = _kind(frame.payload)
            _check_size(frame.size, kind)
            return kernel.planes_holds(frame.payload, data, kind)
        _check_parts(frame)
        body, source, kind = _predicted(frame, source_of(frame, fetch), fetch, kernel)
        return kernel.delta_holds(body, source, data, kind)
    except ValueError as error:
        raise IntegrityError(f"a stored frame can't be decoded: {error}") from error


def decode_checked(digest: Digest, frame: Frame, fetch: Fetch, kernel: Kernel) -> Buffer:
    """Returns the bytes of `frame`, which have that digest; raises IntegrityError otherwise."""
    data = decode(frame, fetch, kernel)
    if digest_of(data) != digest:
        raise IntegrityError(
            f"object {short(digest)} is damaged: its {len(data)} bytes have another digest",
            hint="run 'lockgate verify' to see which versions it hurts",
        )
    return data


def _decode(frame: Frame, fetch: Fetch, kernel: Kernel) -> Buffer:
    if frame.codec == RAW:
        return frame.payload
    if frame.codec == ZSTD:
        return _zstd(frame)
    if frame.codec == PLANES:
        kind = _kind(frame.payload)
        _check_size(frame.size, kind)
        out = kernel.rooms.lend(frame.size)
        kernel.planes_decode(frame.payload, out, kind)
        return out
    _check_parts(frame)
    source = source_of(frame, fetch)
    if frame.codec == DELTA:
        return _delta(frame, source, fetch, kernel)
    if frame.codec == COPY:
        return source
    return recipes.cast(source, frame.payload) if frame.codec == CAST else _quantized(frame, source)


def _check_parts(frame: Frame) -> None:
    """Raises ValueError, before any is taken, for parts that make more or fewer bytes than stated.

    A few bytes may name one block millions of times.
    """
    if not frame.parts:
        return
    taken = sum(part.block * part.count for part in frame.parts)
    made = taken
    if frame.codec == CAST:
        made = recipes.cast_bytes(taken, frame.payload)
    elif frame.codec == QUANTIZE:
        made = recipes.quantized_bytes(taken, frame.payload)
    if made != frame.size:
        raise ValueError(f"its parts make {made} bytes, not {frame.size}")


def _quantized(frame: Frame, source: Buffer) -> bytes:
    if frame.codec != QUANTIZE:
        raise ValueError(f"there is no codec {frame.codec}")
    return recipes.quantize(bytes(source), frame.payload)


def _check_size(size: int, kind: int) -> None:
    if kind not in WIDTHS or size % WIDTHS[kind] or size > MAX_SOURCE:
        raise ValueError(f"{size} bytes are no whole elements of kind {kind}")


def _kind(payload: Buffer) -> int:
    if not len(payload):
        raise ValueError("it is empty")
    return payload[0]


def _zstd(frame: Frame) -> bytes:
    """Believes the size that zstd's own head states, once it is the frame's: no more is written."""
    import zstandard

    payload = bytes(frame.payload)
    try:
        stated = zstandard.get_frame_parameters(payload).content_size
        if stated != frame.size:
            raise ValueError(f"it holds {stated} bytes, not {frame.size}")
        return zstandard.ZstdDecompressor().decompress(payload, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error


def _delta(frame: Frame, source: Buffer, fetch: Fetch, kernel: Kernel) -> Buffer:
    body, prediction, kind = _predicted(frame, source, fetch, kernel)
    out = kernel.rooms.lend(frame.size)
    kernel.delta_decode(body, prediction, out, kind)
    return out


def _predicted(
    frame: Frame, source: Buffer, fetch: Fetch, kernel: Kernel
) -> tuple[memoryview, Buffer, int]:
    """Returns the differences, what they are taken from, and the kind of its elements.

    The payload: predictor u8, length u32 and bytes of its parameters, the differences.
    """
    payload = memoryview(frame.payload)
    if len(payload) < 6:
        raise ValueError("it is cut")
    predictor, length = payload[0], int.from_bytes(payload[1:5], "little")
    if length > len(payload) - 6:
        raise ValueError("it is cut")
    parameters, body = payload[5 : 5 + length], payload[5 + length :]
    kind = _kind(body)
    _check_size(frame.size, kind)
    if len(source) != frame.size:
        raise ValueError(f"its source has {len(source)} bytes")
    if predictor == DRIFT:
        source = drift.predict(source, kind, parameters)
    elif predictor == LOW_RANK:
        if len(frame.deps) < 2:
            raise ValueError("it names no factors")
        source = lowrank.predict(source, kind, parameters, fetch(frame.deps[-1]), kernel)
    elif predictor != PLAIN:
        raise ValueError(f"there is no predictor {predictor}")
    return body, source, kind
