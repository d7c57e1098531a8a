"""Interleaved range ANS in NumPy: writes and reads the bytes of `native/rans.c`.

Duda, "Asymmetric numeral systems" (arXiv:1311.2540). Symbols are bytes, contexts are small bytes;
each context has a static table of 11-bit frequencies. Element i of a segment belongs to lane
i mod lanes. All whole segments of a block advance in step, one NumPy operation for all lanes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SCALE_BITS = 11
SCALE = 1 << SCALE_BITS
LOW = 1 << 15
MAX_CONTEXTS = 32
MAX_ELEMENTS = 1 << 26
MAX_GROUP = 1 << 20
BLOCK = 1 << 16
CORRUPT = "the frame is corrupt"
_MEAN = 256

Bytes = NDArray[np.uint8]
Words = NDArray[np.uint64]


class Input:
    """A byte string that is read from the front; raises ValueError past its end."""

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._data = memoryview(data)
        self._at = 0

    def take(self, size: int) -> memoryview:
        """Returns the next `size` bytes."""
        if size > len(self._data) - self._at:
            raise ValueError(CORRUPT)
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self, size: int) -> int:
        """Returns the next little-endian number of `size` bytes."""
        return int.from_bytes(self.take(size), "little")

    def rest(self) -> memoryview:
        """Returns what is left."""
        return self.take(len(self._data) - self._at)


def _lanes_for(count: int) -> int:
    return 4 if count < 8192 else 64


def normalise(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns frequencies that sum to SCALE, at least 1 for each counted symbol; zeros for none."""
    total = int(counts.sum())
    if not total:
        return np.zeros(256, np.int64)
    freqs = (counts * SCALE + total // 2) // total
    freqs[(counts > 0) & (freqs == 0)] = 1
    left = SCALE - int(freqs.sum())
    if left >= 0:
        freqs[counts.argmax()] += left
    for _ in range(-left):
        freqs[freqs.argmax()] -= 1
    return freqs


def _order(mean: int) -> int:
    """Returns the order of a frequency's Exp-Golomb code, from four times what is expected."""
    return (mean >> 4).bit_length()


def _put_tables(freqs: NDArray[np.int64]) -> bytes:
    """Returns the tables of all contexts, bit after bit, each up to where its sum is full."""
    value = at = 0
    for row in freqs:
        used = np.flatnonzero(row)
        if not used.size:
            at += 1
            continue
        first, mean = int(used[0]), _MEAN
        value |= (1 | first << 1) << at
        at += 9
        for freq in row[first : int(used[-1]) + 1].tolist():
            low = _order(mean)
            high = (freq >> low) + 1
            log = high.bit_length() - 1
            code = 1 << log | (high - (1 << log)) << (log + 1)
            value |= (code | (freq & ((1 << low) - 1)) << (2 * log + 1)) << at
            at += 2 * log + 1 + low
            mean = (mean + 4 * freq) >> 1
    return value.to_bytes(-(-at // 8), "little")


class _Bits:
    """Bits of an input, the least of each byte first; raises ValueError past its end."""

    def __init__(self, data: Input) -> None:
        self._data = data
        self._value = self._many = 0

    def take(self, many: int) -> int:
        """Returns the next `many` bits."""
        while self._many < many:
            self._value |= self._data.number(1) << self._many
            self._many += 8
        found = self._value & ((1 << many) - 1)
        self._value >>= many
        self._many -= many
        return found

    def freq(self, low: int) -> int:
        """Returns a number in the Exp-Golomb code of order `low`."""
        log = 0
        while not self.take(1):
            log += 1
            if log > SCALE_BITS:
                raise ValueError(CORRUPT)
        high = (1 << log) + self.take(log)
        return (high - 1) << low | self.take(low)


def _take_table(bits: _Bits) -> tuple[NDArray[np.int64], ...]:
    """Returns, for each slot: frequency, slot less the symbol's first slot, symbol."""
    if not bits.take(1):
        return np.full(SCALE, SCALE), np.arange(SCALE), np.zeros(SCALE, np.int64)
    freqs = np.zeros(256, np.int64)
    symbol, left, mean = bits.take(8), SCALE, _MEAN
    while left:
        if symbol > 255:
            raise ValueError(CORRUPT)
        freq = bits.freq(_order(mean))
        if freq > left:
            raise ValueError(CORRUPT)
        freqs[symbol] = freq
        symbol, left, mean = symbol + 1, left - freq, (mean + 4 * freq) >> 1
    symbols = np.repeat(np.arange(256), freqs)
    starts = np.cumsum(freqs) - freqs
    return freqs[symbols], np.arange(SCALE) - starts[symbols], symbols


def _segment_log(counts: NDArray[np.int64], freqs: NDArray[np.int64], count: int) -> int:
    """Returns the log of the least segment whose words take about 32 KiB, from 13 to 20."""
    used = counts > 0
    counted, freq = counts[used], freqs[used]
    log = np.zeros(freq.size, np.int64)
    for _ in range(SCALE_BITS):
        log += (freq << log) < SCALE
    bits = int(np.where(log > 0, counted * log, counted // 16).sum())
    size = 13
    while size < 20 and (bits >> 3) << size < count * 32768:
        size += 1
    return size


def encode(symbols: Bytes, contexts_of: Bytes | None, contexts: int) -> bytes:
    """Returns the block of `symbols`, each under its context (all under 0 when there are none)."""
    count = symbols.size
    keys = symbols.astype(np.int64)
    if contexts_of is not None:
        keys |= contexts_of.astype(np.int64) << 8
    counts = np.bincount(keys, minlength=contexts * 256).reshape(contexts, 256)
    freqs = np.stack([normalise(row) for row in counts])
    starts = np.cumsum(freqs, axis=1) - freqs
    log = _segment_log(counts.ravel(), freqs.ravel(), count)
    lanes = _lanes_for(count)
    size = 1 << log
    whole = count // size
    freq = freqs.ravel()[keys].astype(np.uint64)
    start = starts.ravel()[keys].astype(np.uint64)
    segments = _push(freq[: whole * size], start[: whole * size], whole, lanes) if whole else []
    if count % size:
        segments += _push(freq[whole * size :], start[whole * size :], 1, lanes)
    lengths = struct.pack(f"<{len(segments)}I", *map(len, segments))
    return bytes((lanes, log)) + _put_tables(freqs) + lengths + b"".join(segments)


def _push(freq: Words, start: Words, segments: int, lanes: int) -> list[bytes]:
    """Encodes equal segments in step, from their last elements to their first."""
    size = freq.size // segments
    steps = -(-size // lanes)
    padded = ((0, 0), (0, steps * lanes - size))
    f = np.pad(freq.reshape(segments, size), padded).reshape(segments, steps, lanes)
    c = np.pad(start.reshape(segments, size), padded).reshape(segments, steps, lanes)
    state = np.full((segments, lanes), LOW, np.uint64)
    words = np.zeros(f.shape, np.uint16)
    given = np.zeros(f.shape, bool)
    for step in range(steps - 1, -1, -1):
        active = f[:, step] > 0
        divisor = np.maximum(f[:, step], 1)
        out = active & (state >= divisor << np.uint64(31 - SCALE_BITS))
        words[:, step] = state & np.uint64(0xFFFF)
        given[:, step] = out
        state = np.where(out, state >> np.uint64(16), state)
        pushed = ((state // divisor) << np.uint64(SCALE_BITS)) + state % divisor + c[:, step]
        state = np.where(active, pushed, state)
    heads = state.astype("<u4")
    return [
        heads[s].tobytes() + words[s][given[s]].astype("<u2").tobytes() for s in range(segments)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A block that was opened: its tables, slot by slot, and its segments' bytes."""

    freq: Words
    bias: Words
    symbol: Bytes
    lanes: int
    size: int
    segments: tuple[memoryview, ...]


def open_block(data: Input, count: int, contexts: int) -> Block:
    """Reads a block's head and tables; raises ValueError when they are not sound."""
    lanes, log = data.number(1), data.number(1)
    if count > MAX_ELEMENTS or not 1 <= contexts <= MAX_CONTEXTS:
        raise ValueError(CORRUPT)
    if lanes != _lanes_for(count) or not 13 <= log <= 20:
        raise ValueError(CORRUPT)
    bits = _Bits(data)
    tables = [_take_table(bits) for _ in range(contexts)]
    freq, bias, symbol = (np.concatenate(parts) for parts in zip(*tables, strict=True))
    lengths = np.frombuffer(data.take(4 * -(-count >> log) if count else 0), "<u4").tolist()
    if any(length < lanes * 4 or length % 2 for length in lengths):
        raise ValueError(CORRUPT)
    return Block(
        freq=freq.astype(np.uint64),
        bias=bias.astype(np.uint64),
        symbol=symbol.astype(np.uint8),
        lanes=lanes,
        size=1 << log,
        segments=tuple(data.take(length) for length in lengths),
    )


def decode(block: Block, contexts_of: Bytes | None, count: int) -> Bytes:
    """Returns the block's `count` symbols; raises ValueError when it does not come out even."""
    out = np.empty(count, np.uint8)
    whole = count // block.size
    parts = [(0, whole), (whole, len(block.segments))]
    for first, last in parts:
        begin, end = first * block.size, min(last * block.size, count)
        if end > begin:
            given = None if contexts_of is None else contexts_of[begin:end]
            out[begin:end] = _pull(block, block.segments[first:last], given, end - begin)
    return out


def _pull(
    block: Block, segments: tuple[memoryview, ...], contexts_of: Bytes | None, count: int
) -> Bytes:
    lanes, many = block.lanes, len(segments)
    size = count // many
    steps = -(-size // lanes)
    heads = [np.frombuffer(part[: lanes * 4], "<u4") for part in segments]
    state = np.stack(heads).astype(np.uint64)
    if (state < LOW).any() or (state >> np.uint64(31)).any():
        raise ValueError(CORRUPT)
    tails = [np.frombuffer(part[lanes * 4 :], "<u2") for part in segments]
    ends = np.cumsum([tail.size for tail in tails])
    at = ends - [tail.size for tail in tails]
    words = np.concatenate([*tails, np.zeros(lanes, np.uint16)]).astype(np.uint64)
    padded = np.zeros((many, steps * lanes), np.uint64)
    if contexts_of is not None:
        padded[:, :size] = contexts_of.reshape(many, size)
    contexts = (padded << np.uint64(SCALE_BITS)).reshape(many, steps, lanes)
    out = np.empty((many, steps, lanes), np.uint8)
    for step in range(steps):
        live = np.arange(lanes) < size - step * lanes
        slot = contexts[:, step] + (state & np.uint64(SCALE - 1))
        out[:, step] = block.symbol[slot]
        pulled = block.freq[slot] * (state >> np.uint64(SCALE_BITS)) + block.bias[slot]
        need = live & (pulled < LOW)
        before: NDArray[np.int64] = np.cumsum(need, axis=1) - need
        index = np.minimum(at[:, None] + before, words.size - 1)
        pulled = np.where(need, pulled << np.uint64(16) | words[index], pulled)
        state = np.where(live, pulled, state)
        at = at + need.sum(axis=1)
        if (at > ends).any():
            raise ValueError(CORRUPT)
    if (state != LOW).any() or (at != ends).any():
        raise ValueError(CORRUPT)
    return out.reshape(many, steps * lanes)[:, :size].ravel()


def _log(value: int) -> int:
    """Returns the binary logarithm of a count above 0, in 1/256."""
    whole = value.bit_length() - 1
    result = whole << 8
    x = value << (31 - whole)
    bit = 128
    while bit:
        x = x * x >> 31
        if x >> 32:
            x >>= 1
            result |= bit
        bit >>= 1
    return result


def _bits(counts: NDArray[np.int64]) -> int:
    """Returns what coding so many of each byte takes, in 1/256 bits."""
    total, found = int(counts.sum()), counts[counts > 0].tolist()
    return sum(count * (_log(total) - _log(count)) for count in found)


def _stride(count: int) -> int:
    stride = 8
    while count // stride > 65536:
        stride *= 2
    return stride


def _is_noise(symbols: Bytes) -> bool:
    """Says whether some of the bytes show that coding saves less than a hundredth."""
    if symbols.size < 8192:
        return False
    some = symbols[:: _stride(symbols.size)]
    return _bits(np.bincount(some, minlength=256)) > some.size * (8 * 256 * 99 // 100)


def _differs(symbols: Bytes) -> bool:
    """Says whether a table for each BLOCK bytes saves a sixteenth; see `differs` in `rans.c`."""
    stride = _stride(symbols.size)
    blocks = symbols[: symbols.size // BLOCK * BLOCK].reshape(-1, BLOCK)[:, ::stride]
    counts = [np.bincount(block, minlength=256) for block in blocks]
    pairs = [int((count * count).sum()) for count in counts]
    if max(pairs) // 4 < min(pairs):
        return False
    whole = _bits(np.bincount(symbols[::stride], minlength=256))
    return sum(map(_bits, counts)) < whole - whole // 16


def encode_array(symbols: Bytes) -> bytes:
    """Returns an array of bytes: constant, rANS, raw, or blocks of these."""
    if not symbols.size or (symbols == symbols[0]).all():
        return bytes((1, int(symbols[0]) if symbols.size else 0))
    if symbols.size > BLOCK and _differs(symbols):
        blocks = b"".join(
            encode_array(symbols[i : i + BLOCK]) for i in range(0, symbols.size, BLOCK)
        )
        return b"\3" + struct.pack("<I", len(blocks)) + blocks
    if _is_noise(symbols):
        return b"\0" + symbols.tobytes()
    coded = b"\2" + encode(symbols, None, 1)
    return coded if len(coded) <= symbols.size else b"\0" + symbols.tobytes()


def decode_array(data: Input, count: int) -> Bytes:
    """Returns the array of `count` bytes that comes next; raises ValueError."""
    mode = data.number(1)
    if mode != 3:
        return _decode_block(data, count, mode)
    blocks = Input(data.take(data.number(4))) if count > BLOCK else None
    if blocks is None:
        raise ValueError(CORRUPT)
    sizes = [min(BLOCK, count - i) for i in range(0, count, BLOCK)]
    found = np.concatenate([_decode_block(blocks, size, blocks.number(1)) for size in sizes])
    if blocks.rest():
        raise ValueError(CORRUPT)
    return found


def _decode_block(data: Input, count: int, mode: int) -> Bytes:
    if mode == 0:
        return np.frombuffer(data.take(count), np.uint8)
    if mode == 1:
        return np.full(count, data.number(1), np.uint8)
    if mode != 2:
        raise ValueError(CORRUPT)
    return decode(open_block(data, count, 1), None, count)
