"""A frame → the bytes of its object."""

from __future__ import annotations

import numpy as np

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
        out = _room(frame.size, kind)
        kernel.planes_decode(frame.payload, out, kind)
        return out
    source = source_of(frame, fetch)
    if frame.codec == DELTA:
        return _delta(frame, source, fetch, kernel)
    if frame.codec == COPY:
        return source
    return recipes.cast(source, frame.payload) if frame.codec == CAST else _quantized(frame, source)


def _quantized(frame: Frame, source: Buffer) -> bytes:
    if frame.codec != QUANTIZE:
        raise ValueError(f"there is no codec {frame.codec}")
    return recipes.quantize(bytes(source), frame.payload)


def _room(size: int, kind: int) -> memoryview:
    """Returns memory for a result; not zeroed, for every byte of it is written."""
    if kind not in WIDTHS or size % WIDTHS[kind] or size > MAX_SOURCE:
        raise ValueError(f"{size} bytes are no whole elements of kind {kind}")
    return np.empty(size, np.uint8).data if size else memoryview(bytearray())


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
    """The payload: predictor u8, length u32 and bytes of its parameters, the differences."""
    payload = memoryview(frame.payload)
    if len(payload) < 6:
        raise ValueError("it is cut")
    predictor, length = payload[0], int.from_bytes(payload[1:5], "little")
    if length > len(payload) - 6:
        raise ValueError("it is cut")
    parameters, body = payload[5 : 5 + length], payload[5 + length :]
    kind = _kind(body)
    out = _room(frame.size, kind)
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
    kernel.delta_decode(body, source, out, kind)
    return out
