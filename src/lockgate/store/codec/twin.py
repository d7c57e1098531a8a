"""The codecs' hot loops in NumPy, for where no compiler was: the bytes of `native/`, bit for bit.

See `native/delta.c` and `native/planes.c` for what is done and why. Same calls as `_kernel`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lockgate.store.codec import twin_rans as rans
from lockgate.store.codec.dtypes import Buffer

Room = bytearray | memoryview
Ints = NDArray[np.int64]
_SPAN = 24
_SAMPLE = 16
_SHIFT = 128
_SPREAD = 512
_SPARSE_FROM = 1024
_FEW = 63


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """How an element's bits are read: its width, and where its exponent is (None: an integer)."""

    bits: int
    exponent: tuple[int, int] | None = None
    none: int = 256
    rotates: bool = False

    @property
    def small(self) -> int:
        """Magnitudes below 2^small have a token of their own."""
        return 4 if self.bits == 32 else 6


KINDS = {
    1: Kind(bits=8),
    2: Kind(bits=8, exponent=(3, 15)),
    3: Kind(bits=8, exponent=(2, 31), none=31),
    4: Kind(bits=16, exponent=(10, 31), none=31, rotates=True),
    5: Kind(bits=16, exponent=(7, 255), none=255, rotates=True),
    6: Kind(bits=32, exponent=(23, 255), none=255, rotates=True),
    7: Kind(bits=16),
    8: Kind(bits=32),
}


def _elements(data: Buffer, kind: Kind) -> Ints:
    return np.frombuffer(data, f"<u{kind.bits // 8}").astype(np.int64)


def _wrap(value: Ints, bits: int) -> Ints:
    """Returns `value` modulo 2^bits, as a signed number."""
    half = 1 << (bits - 1)
    return ((value + half) & ((1 << bits) - 1)) - half


def _ordered(value: Ints, bits: int) -> Ints:
    mask = (1 << bits) - 1
    return np.where(value >> (bits - 1) > 0, ~value & mask, value | 1 << (bits - 1))


def _subtract(data: Ints, base: Ints, kind: Kind) -> Ints:
    if kind.exponent is None:
        return _wrap(data - base, kind.bits)
    difference = _ordered(data, kind.bits) - _ordered(base, kind.bits)
    return _wrap(np.where(base >> (kind.bits - 1) > 0, -difference, difference), kind.bits)


def _add(base: Ints, difference: Ints, kind: Kind) -> Ints:
    mask = (1 << kind.bits) - 1
    if kind.exponent is None:
        return (base + difference) & mask
    signed = np.where(base >> (kind.bits - 1) > 0, -difference, difference)
    order = (_ordered(base, kind.bits) + signed) & mask
    top = 1 << (kind.bits - 1)
    return np.where(order >> (kind.bits - 1) > 0, order ^ top, ~order & mask)


def _shifts(base: Ints, reference: int, kind: Kind) -> Ints:
    if kind.exponent is None:
        return np.full(base.size, _SPAN, np.int64)
    shift, mask = kind.exponent
    found: Ints = np.clip((base >> shift & mask) - reference, 0, _SPAN)
    return found


def _reference(base: Ints, kind: Kind) -> int:
    if kind.exponent is None:
        return 0
    shift, mask = kind.exponent
    found = base[::_SAMPLE] >> shift & mask
    return max(int(np.where(found == kind.none, 0, found).max(initial=0)) - _SPAN, 0)


def _half_octaves(value: int) -> int:
    if not value:
        return 0
    log = value.bit_length() - 1
    top = value >> (log - 15) if log >= 15 else value << (15 - log)
    return 2 * log + (top >= 46341)


def _classes(magnitudes: Ints, shifts: Ints, group: int, kind: Kind) -> rans.Bytes:
    lowered = 16 if kind.bits == 32 else 0
    few = magnitudes if kind.bits == 32 else np.minimum(magnitudes, _FEW)
    weights = (few << shifts) >> lowered
    classes = []
    for begin in range(0, weights.size, group):
        part = weights[begin : begin + group]
        if part.size >= _SPARSE_FROM:
            part = part[np.arange(part.size) % 64 < 16]
        limit = int(part.sum()) * 8 // part.size
        total = int(np.minimum(part, limit).sum())
        found = _half_octaves(total * 16 // part.size) + 2 * lowered - 8
        classes.append(max(found, 0) if total else 0)
    return np.array(classes, np.uint8)


def _contexts_for(count: int) -> int:
    for least, contexts in ((65536, 32), (16384, 16), (8192, 8), (2048, 4)):
        if count >= least:
            return contexts
    return 1


def _choose(expected: Ints, changed: NDArray[np.bool_]) -> tuple[int, int, int]:
    """Returns origin, step and number of contexts for the sizes that every 16th element expects.

    Only groups that changed have a say.
    """
    count = expected.size
    seen = np.bincount(expected[::_SAMPLE][changed[::_SAMPLE]] + _SHIFT, minlength=_SPREAD)
    total = int(seen.sum())
    low = min(int(np.argmax(np.cumsum(seen) * 200 > total)) if total else _SPREAD - 1, _SPREAD - 1)
    down = np.cumsum(seen[::-1]) * 1000 > total
    high = max(_SPREAD - 1 - (int(np.argmax(down)) if total else _SPREAD - 1), low)
    step = 0
    while ((high - low) >> step) + 1 > _contexts_for(count):
        step += 1
    return low - _SHIFT, step, ((high - low) >> step) + 1


def _contexts_of(expected: Ints, origin: int, step: int, contexts: int) -> rans.Bytes | None:
    if contexts == 1:
        return None
    found: rans.Bytes = np.clip((expected - origin) >> step, 0, contexts - 1).astype(np.uint8)
    return found


def _spread(classes: rans.Bytes, group: int, count: int, shifts: Ints) -> Ints:
    return np.repeat(classes.astype(np.int64), min(group, count))[:count] - 2 * shifts


def _tokens(difference: Ints, kind: Kind) -> tuple[rans.Bytes, Ints, Ints]:
    """Returns the tokens, and of each element the extra bits and how many there are."""
    small = kind.small
    size = np.abs(difference)
    log = np.frexp(size.astype(np.float64))[1].astype(np.int64) - 1
    large = size >> small > 0
    log = np.where(large, log, small)
    bucket = (1 << small) + (log - small) * 4 + (size >> (log - 2) & 3)
    token = 2 * np.where(large, bucket, size) - 1 + (difference < 0)
    many = np.where(large, log - 2, 0)
    return np.where(size > 0, token, 0).astype(np.uint8), size & ((1 << many) - 1), many


def _pack(values: Ints, many: Ints) -> bytes:
    """Returns the low `many` bits of each value, one after the other, least significant first."""
    used = many > 0
    values, many = values[used], many[used]
    starts = np.cumsum(many) - many
    owner = np.repeat(np.arange(many.size), many)
    place = np.arange(int(many.sum())) - starts[owner]
    return np.packbits((values[owner] >> place & 1).astype(np.uint8), bitorder="little").tobytes()


def _unpack(data: memoryview, many: Ints) -> Ints:
    """Returns the values that `_pack` packed; raises ValueError when there are too few or many."""
    total = int(many.sum())
    if -(-total // 8) != len(data):
        raise ValueError(rans.CORRUPT)
    raw = np.concatenate([np.frombuffer(data, np.uint8), np.zeros(8, np.uint8)]).astype(np.uint64)
    starts = np.cumsum(many) - many
    value = np.zeros(many.size, np.uint64)
    for byte in range(5):
        value |= raw[np.minimum((starts >> 3) + byte, raw.size - 1)] << np.uint64(8 * byte)
    kept = value >> (starts & 7).astype(np.uint64)
    return (kept & ((np.uint64(1) << many.astype(np.uint64)) - np.uint64(1))).astype(np.int64)


def delta_encode(
    data: Buffer, base: Buffer, kind: int, group: int, scratch: object, level: int
) -> bytes:
    """Returns `data` as differences from `base`; both hold elements of `kind`."""
    del scratch, level
    what = KINDS[kind]
    x, b = _elements(data, what), _elements(base, what)
    if x.size != b.size or not 0 < group <= rans.MAX_GROUP:
        raise ValueError("the base has another size than the data, or the group is none")
    difference = _subtract(x, b, what)
    reference = _reference(b, what)
    shifts = _shifts(b, reference, what)
    classes = _classes(np.abs(difference), shifts, group, what)
    expected = _spread(classes, group, x.size, shifts)
    changed = np.repeat(classes > 0, min(group, x.size))[: x.size]
    origin, step, contexts = _choose(expected, changed)
    tokens, extra, many = _tokens(difference, what)
    head = struct.pack("<4BHI", kind, contexts, step, reference, origin + _SHIFT, group)
    coded = rans.encode(tokens, _contexts_of(expected, origin, step, contexts), contexts)
    return head + rans.encode_array(classes) + coded + _pack(extra, many)


def delta_decode(
    payload: Buffer, base: Buffer, out: Room, kind: int, scratch: object, level: int
) -> None:
    """Writes the elements of `payload` to `out`; raises ValueError when it is not sound."""
    del scratch, level
    what = KINDS[kind]
    data = rans.Input(payload)
    b = _elements(base, what)
    if len(base) != len(out):
        raise ValueError("the base has another size than the data")
    stated, contexts, step, reference, origin, group = struct.unpack("<4BHI", data.take(10))
    sound = stated == kind and 1 <= contexts <= rans.MAX_CONTEXTS and step <= 8
    if not sound or origin >= _SPREAD or not 0 < group <= rans.MAX_GROUP:
        raise ValueError(rans.CORRUPT)
    classes = rans.decode_array(data, -(-b.size // group))
    shifts = _shifts(b, reference, what)
    expected = _spread(classes, group, b.size, shifts)
    block = rans.open_block(data, b.size, contexts)
    tokens = rans.decode(block, _contexts_of(expected, origin - _SHIFT, step, contexts), b.size)
    difference = _differences(tokens.astype(np.int64), data.rest(), what)
    result = _add(b, difference, what).astype(f"<u{what.bits // 8}")
    memoryview(out).cast("B")[:] = result.tobytes()


def _differences(tokens: Ints, extra: memoryview, kind: Kind) -> Ints:
    small = kind.small
    size = (tokens + 1) >> 1
    large = np.flatnonzero(tokens >= (2 << small) - 1)
    bucket = size[large] - (1 << small)
    log = bucket // 4 + small
    if (log >= kind.bits).any():
        raise ValueError(rans.CORRUPT)
    low = _unpack(extra, log - 2)
    size[large] = (4 | bucket & 3) << (log - 2) | low
    return np.where(tokens & 1 > 0, size, -size)


def delta_holds(
    payload: Buffer, base: Buffer, data: Buffer, kind: int, scratch: object, level: int
) -> bool:
    """Says whether `delta_decode` gives `data`; raises ValueError when `payload` is not sound."""
    out = bytearray(len(data))
    delta_decode(payload, base, out, kind, scratch, level)
    return out == bytes(data)


def planes_encode(data: Buffer, kind: int, scratch: object, level: int) -> bytes:
    """Returns `data`, elements of `kind`, as one coded plane for each byte of an element."""
    del scratch, level
    what = KINDS[kind]
    values = _elements(data, what)
    if what.rotates:
        values = (values << 1 | values >> (what.bits - 1)) & ((1 << what.bits) - 1)
    planes = [(values >> 8 * p & 255).astype(np.uint8) for p in range(what.bits // 8)]
    return bytes((kind,)) + b"".join(rans.encode_array(plane) for plane in planes)


def planes_decode(payload: Buffer, out: Room, kind: int, scratch: object, level: int) -> None:
    """Writes the elements of `payload` to `out`; raises ValueError when it is not sound."""
    del scratch, level
    what = KINDS[kind]
    data = rans.Input(payload)
    count = len(out) * 8 // what.bits
    if data.number(1) != kind:
        raise ValueError(rans.CORRUPT)
    values = np.zeros(count, np.int64)
    for p in range(what.bits // 8):
        values |= rans.decode_array(data, count).astype(np.int64) << 8 * p
    if data.rest():
        raise ValueError(rans.CORRUPT)
    if what.rotates:
        values = values >> 1 | (values & 1) << (what.bits - 1)
    memoryview(out).cast("B")[:] = values.astype(f"<u{what.bits // 8}").tobytes()


def planes_holds(payload: Buffer, data: Buffer, kind: int, scratch: object, level: int) -> bool:
    """Says whether `planes_decode` gives `data`; raises ValueError when `payload` is not sound."""
    out = bytearray(len(data))
    planes_decode(payload, out, kind, scratch, level)
    return out == bytes(data)


def scratch_size(size: int) -> int:
    """Returns how much memory a call wants lent: none here."""
    del size
    return 0


def best_level() -> int:
    """Returns the instruction set: 0, for NumPy chooses its own."""
    return 0
