"""The twins write and read the same bytes: native at every level of this machine, and NumPy."""

from __future__ import annotations

import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from lockgate.core.errors import UsageError
from lockgate.store.codec import kernel as kernels
from lockgate.store.codec import twin
from lockgate.store.codec.dtypes import WIDTHS
from lockgate.store.codec.kernel import Kernel, named_kernel


def here() -> list[Kernel]:
    found = []
    for name in ("numpy", *kernels.LEVELS):
        try:
            found.append(named_kernel(name))
        except UsageError:
            continue
    return found


KERNELS = here()
SIZES = (0, 1, 3, 4, 5, 63, 64, 65, 1023, 1024, 2047, 2048, 8191, 8192, 8193, 16384, 32767, 32769,
         65535, 65536, 65601)  # fmt: skip
LIKES = ("zeros", "one value", "random", "weights", "odd")
FOUR = st.binary(min_size=4, max_size=4)
CHANGES = ("none", "near", "extreme", "some", "random")


def odd_ones(kind: int) -> np.ndarray:
    """Infinities, NaN with other bits, denormals, both zeros, the greatest and the least."""
    bits = WIDTHS[kind] * 8
    top, exponent = 1 << (bits - 1), twin.KINDS[kind].exponent
    values = [0, 1, 2, top, top | 1, top - 1, 2 * top - 1, top - 2]
    if exponent is not None:
        shift, mask = exponent
        infinite, least = mask << shift, 1 << shift
        values += [infinite, infinite | 1, top | infinite, infinite - 1, least, least - 1]
        values += [top | infinite | (least >> 1)]
    return np.array(values, np.uint64).astype(f"<u{WIDTHS[kind]}")


def made(kind: int, count: int, like: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    width = WIDTHS[kind]
    if like == "zeros":
        return np.zeros(count, f"<u{width}")
    if like == "one value":
        return np.full(count, rng.integers(0, 1 << 8 * width), f"<u{width}")
    if like == "odd":
        return rng.choice(odd_ones(kind), count)
    if like == "weights" and kind in (4, 5, 6):
        values = rng.normal(0, 0.02, count).astype("<f4")
        if kind == 4:
            return values.astype("<f2").view("<u2")
        return values.view("<u4") if kind == 6 else (values.view("<u4") >> 16).astype("<u2")
    return np.frombuffer(rng.bytes(count * width), f"<u{width}")


def changed(kind: int, base: np.ndarray, change: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed + 1)
    if change == "none":
        return base
    if change == "random":
        return made(kind, base.size, "random", seed + 2)
    if change == "extreme":  # ± half of all that there are, and one less and more
        half = 1 << (WIDTHS[kind] * 8 - 1)
        return base + (rng.integers(half - 1, half + 2, base.size)).astype(base.dtype)
    near = base + rng.integers(-40, 41, base.size).astype(base.dtype)
    return near if change == "near" else np.where(rng.random(base.size) < 0.05, near, base)


def check(data: bytes, base: bytes, kind: int, group: int) -> bytes:
    """Both codecs, with every kernel; returns what they wrote."""
    written = {
        (k.delta_encode(data, base, kind, group), k.planes_encode(data, kind)) for k in KERNELS
    }
    assert len(written) == 1, "the twins wrote different bytes"
    ((delta, planes),) = written
    for one in KERNELS:
        out = bytearray(b"\xaa" * len(data))
        one.delta_decode(delta, base, out, kind)
        assert out == data, one.name
        out = bytearray(b"\x55" * len(data))
        one.planes_decode(planes, out, kind)
        assert out == data, one.name
        check_comparing(one, delta, planes, data, base, kind)
    return delta + planes


def check_comparing(
    one: Kernel, delta: bytes, planes: bytes, data: bytes, base: bytes, kind: int
) -> None:
    """What holds is said to hold, and not when a bit at an end or between is another."""
    assert one.delta_holds(delta, base, data, kind)
    assert one.planes_holds(planes, data, kind)
    for at in {0, len(data) // 2, len(data) - 1} if data else ():
        other = bytearray(data)
        other[at] ^= 1
        assert not one.delta_holds(delta, base, other, kind), one.name
        assert not one.planes_holds(planes, other, kind), one.name


@pytest.mark.parametrize("kind", sorted(WIDTHS))
@settings(max_examples=25, deadline=None)
@given(
    count=st.sampled_from(SIZES) | st.integers(0, 3000),
    like=st.sampled_from(LIKES),
    change=st.sampled_from(CHANGES),
    group=st.sampled_from((1, 2, 7, 16, 63, 64, 512, 1023, 1024, 4096, 1 << 20)),
    seed=st.integers(0, 999),
)
def test_the_twins_agree(
    kind: int, count: int, like: str, change: str, group: int, seed: int
) -> None:
    group = max(group, count // 2000)  # NumPy's twin goes group by group
    base = made(kind, count, like, seed)
    check(changed(kind, base, change, seed).tobytes(), base.tobytes(), kind, group)


@pytest.mark.parametrize("kind", sorted(WIDTHS))
@settings(max_examples=40, deadline=None)
@given(pairs=st.lists(st.tuples(FOUR, FOUR), max_size=70), group=st.integers(1, 80))
def test_any_bytes(kind: int, pairs: list[tuple[bytes, bytes]], group: int) -> None:
    data, base = (b"".join(side) for side in zip(*pairs, strict=True)) if pairs else (b"", b"")
    check(data, base, kind, group)


@pytest.mark.parametrize("offset", [1, 2, 3, 5])
@pytest.mark.parametrize("kind", sorted(WIDTHS))
def test_buffers_need_no_alignment(kind: int, offset: int) -> None:
    base = made(kind, 9000, "weights", 1).tobytes()
    data = changed(kind, made(kind, 9000, "weights", 1), "near", 1).tobytes()
    expected = check(data, base, kind, 100)

    def moved(raw: bytes) -> memoryview:
        return memoryview(b"\xff" * offset + raw + b"\xff" * 3)[offset : offset + len(raw)]

    for one in KERNELS:
        delta = one.delta_encode(moved(data), moved(base), kind, 100)
        planes = one.planes_encode(moved(data), kind)
        assert delta + planes == expected
        room = bytearray(b"\xee" * (offset + len(data) + 9))
        out = memoryview(room)[offset : offset + len(data)]
        one.delta_decode(moved(delta), moved(base), out, kind)
        assert out == data
        one.planes_decode(moved(planes), out, kind)
        assert out == data
        assert room[:offset] == b"\xee" * offset, "a byte before the room was written"
        assert room[offset + len(data) :] == b"\xee" * 9, "a byte after the room was written"


@pytest.mark.parametrize("count", [(1 << 20) - 1, 1 << 20, (1 << 20) + 67])
def test_the_longest_segments(count: int) -> None:
    """Where next to nothing changes a segment has 2^20 elements."""
    base = np.zeros(count, np.uint8)
    data = base.copy()
    data[::70_001] = 1
    check(data.tobytes(), base.tobytes(), 1, 4096)


def test_segments_of_noise() -> None:
    """Eight bits an element: segments of 2^15."""
    for count in (1 << 15, (1 << 16) + 1, 3 * (1 << 15) - 1):
        data = made(1, count, "random", 5).tobytes()
        assert len(check(data, bytes(count), 1, 512)) > count


def test_frequencies_with_more_symbols_than_room() -> None:
    """All of 256 symbols, most of them once: their least frequencies sum to more than there is."""
    data = np.concatenate(
        [np.repeat(np.arange(8, dtype=np.uint8), 4000), np.arange(256, dtype=np.uint8)]
    )
    check(data.tobytes(), bytes(data.size), 1, 512)


def in_parts(count: int) -> np.ndarray:
    """Bytes of which a part repeats itself, as rows of an embedding that were never trained."""
    found = hashed(count, 4) % np.uint64(256)
    found[70_000:200_000] &= np.uint64(1)
    found[-3:] = 0
    return found.astype(np.uint8)


@pytest.mark.parametrize("count", [65_536, 65_537, 262_144, 300_001])
def test_parts_that_differ_have_tables_of_their_own(count: int) -> None:
    data = in_parts(count).tobytes()
    planes = check(data, data, 1, 1 << 20)[len(KERNELS[0].delta_encode(data, data, 1, 1 << 20)) :]
    assert (planes[1] == 3) == (count > 200_000)
    if planes[1] == 3:
        assert len(planes) < len(data) - 0.8 * 110_000


def blocks(*parts: bytes, length: int | None = None) -> bytes:
    joined = b"".join(parts)
    return b"\1\3" + struct.pack("<I", len(joined) if length is None else length) + joined


RAW = b"\0" + bytes(65_536)
HOSTILE_BLOCKS = {
    "blocks in blocks": blocks(RAW, b"\3\2\0\0\0\1\0"),
    "a mode": blocks(RAW, b"\4\0"),
    "too few": blocks(RAW),
    "too short": blocks(RAW, b"\0" + bytes(99)),
    "too many": blocks(RAW, b"\1\0", b"\1\0"),
    "longer than there is": blocks(RAW, b"\1\0", length=65_540),
    "a huge length": blocks(RAW, b"\1\0", length=2**32 - 1),
    "shorter than there is": blocks(RAW, b"\1\0", length=65_538),
}


@pytest.mark.parametrize("one", KERNELS, ids=lambda k: k.name)
def test_hostile_blocks(one: Kernel) -> None:
    out = bytearray(b"\xff" * 65_636)
    one.planes_decode(blocks(RAW, b"\1\7"), out, 1)
    assert out == bytes(65_536) + b"\7" * 100
    for payload in HOSTILE_BLOCKS.values():
        with pytest.raises(ValueError):
            one.planes_decode(payload, bytearray(65_636), 1)


def hashed(count: int, seed: int) -> np.ndarray:
    """Numbers that no library's generator can change under us."""
    state = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15 + 2 * seed)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    return (state ^ (state >> np.uint64(31))) >> np.uint64(32)


RECORDED = {
    1: "2afd36260e489ba1156ae30a5d18b1f87816590c327dbceac9a4ee375c05673c",
    2: "d6d54f0e8b2061d0eed484d7f19084703521655435078ab5f43d85fdee345d76",
    3: "643ffbb34930d64787123578efcbb385f98c28eb1ceb4c78e824da5c6862d181",
    4: "4740345b797c611505de02c5830330bbe347a35c8685a5353a5bf666f6e4af2d",
    5: "e499ed0b445f18b17477e39e4fadba74eb07f1ce9d468d4fbaf7917501b97079",
    6: "169ee8fd3365c3bdbfdad4eca9635d53391d3193b5d51d7ecda5a2b71d920e1e",
    7: "8f3172e55cee8b630f0de17ae5426fc1c535021ad7baee2fd3d2033cc763c78a",
    8: "215ccf386120237d0c5c6eb85d84da268b3ce1e333cbfffe0d75f45695c2ad5e",
}


@pytest.mark.parametrize("kind", sorted(WIDTHS))
def test_the_bytes_are_as_they_were(kind: int) -> None:
    """What today's code writes is what every later one must read: the format can't drift."""
    total = blake3()
    for count, group in ((0, 64), (5, 1), (3000, 100), (8192, 64), (70_000, 512)):
        noise = hashed(count, 1)
        small = noise & np.uint64(0x07FFFFFF) | np.uint64(0x38000000)
        small = small | noise << np.uint64(3) & np.uint64(0x80000000)
        base = (small >> np.uint64(16 if WIDTHS[kind] == 2 else 0)).astype(f"<u{WIDTHS[kind]}")
        step = hashed(count, 2) >> (hashed(count, 3) % np.uint64(40))
        data = base + step.astype(base.dtype)
        total.update(check(data.tobytes(), base.tobytes(), kind, group))
    data = in_parts(262_144).tobytes()
    total.update(check(data, data, kind, 4096))
    assert total.hexdigest() == RECORDED[kind]


def test_threads_share_a_kernel() -> None:
    one = named_kernel("")
    cases = []
    for seed in range(12):
        base = made(5, 20_000, "weights", seed)
        cases.append((changed(5, base, "near", seed).tobytes(), base.tobytes()))
    alone = [one.delta_encode(data, base, 5, 128) for data, base in cases]
    with ThreadPoolExecutor(4) as pool:
        assert (
            list(pool.map(lambda c: one.delta_encode(c[0], c[1], 5, 128), cases * 3)) == alone * 3
        )


def test_a_thread_keeps_no_more_than_pieces_want() -> None:
    """One huge object must not leave every thread of a server with hundreds of megabytes."""
    one = named_kernel("")
    for size in (4 << 20, 48 << 20):
        coded = one.planes_encode(bytes(size), 6)
        one.planes_decode(coded, bytearray(size), 6)
        assert len(getattr(one._lent, "memory", b"")) <= 32 << 20


@pytest.mark.parametrize("one", KERNELS, ids=lambda k: k.name)
def test_what_does_not_fit_is_refused(one: Kernel) -> None:
    for call in (
        lambda: one.delta_encode(bytes(8), bytes(6), 5, 1),
        lambda: one.delta_encode(bytes(8), bytes(8), 5, 0),
        lambda: one.delta_encode(bytes(8), bytes(8), 5, (1 << 20) + 1),
        lambda: one.delta_encode(bytes(7), bytes(7), 5, 1),
        lambda: one.planes_encode(bytes(7), 6),
        lambda: one.planes_decode(one.planes_encode(bytes(8), 6), bytearray(7), 6),
        lambda: one.planes_decode(one.planes_encode(bytes(8), 6), bytearray(8), 8),
        lambda: one.delta_decode(
            one.delta_encode(bytes(8), bytes(8), 5, 1), bytes(8), bytearray(6), 5
        ),
        lambda: one.delta_decode(b"", b"", bytearray(), 5),
        lambda: one.planes_decode(b"", bytearray(), 5),
    ):
        with pytest.raises(ValueError):
            call()


@pytest.mark.parametrize("one", KERNELS, ids=lambda k: k.name)
@pytest.mark.parametrize("count", [300, 9000])
def test_a_cut_payload_is_refused(one: Kernel, count: int) -> None:
    base = made(5, count, "weights", 3)
    data = changed(5, base, "near", 3).tobytes()
    delta = one.delta_encode(data, base.tobytes(), 5, 64)
    planes = one.planes_encode(data, 5)
    for size in (*range(40), *range(40, len(delta), 997), len(delta) - 1):
        with pytest.raises(ValueError):
            one.delta_decode(delta[:size], base.tobytes(), bytearray(2 * count), 5)
    for size in (*range(40), *range(40, len(planes), 997), len(planes) - 1):
        with pytest.raises(ValueError):
            one.planes_decode(planes[:size], bytearray(2 * count), 5)
    with pytest.raises(ValueError):
        one.delta_decode(delta + b"\0", base.tobytes(), bytearray(2 * count), 5)
    with pytest.raises(ValueError):
        one.planes_decode(planes + b"\0", bytearray(2 * count), 5)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 20),
    spot=st.floats(0, 1),
    value=st.integers(0, 255),
    delta=st.booleans(),
    count=st.sampled_from((200, 2500, 8200)),
)
def test_a_changed_byte_is_the_same_to_all(
    seed: int, spot: float, value: int, delta: bool, count: int
) -> None:
    """Refused by all, or decoded to the same bytes by all: also what was never encoded."""
    base = made(5, count, "weights", seed)
    data = changed(5, base, "some", seed).tobytes()
    first = KERNELS[-1]
    payload = bytearray(first.delta_encode(data, base.tobytes(), 5, 64) if delta
                        else first.planes_encode(data, 5))  # fmt: skip
    payload[int(spot**3 * (len(payload) - 1))] = value
    answers = set()
    for one in KERNELS:
        out = bytearray(len(data))
        try:
            if delta:
                one.delta_decode(bytes(payload), base.tobytes(), out, 5)
            else:
                one.planes_decode(bytes(payload), out, 5)
            answers.add(bytes(out))
        except ValueError:
            answers.add(b"refused")
    assert len(answers) == 1


def head(**fields: int) -> bytes:
    """The head of a difference, sound but for `fields`."""
    sound = {
        "kind": 5,
        "contexts": 1,
        "step": 0,
        "reference": 0,
        "origin": 128,
        "group": 64,
    } | fields
    return struct.pack("<4BHI", *sound.values())


def bits(*fields: tuple[int, int]) -> bytes:
    """(value, how many bits) one after the other, the least first."""
    total = sum(many for _, many in fields)
    joined = "".join(format(value, f"0{many}b") for value, many in reversed(fields) if many)
    return int(joined or "0", 2).to_bytes(-(-total // 8), "little")


def table(first: int, *freqs: int) -> list[tuple[int, int]]:
    fields, mean = [(1, 1), (first, 8)], 256
    for freq in freqs:
        low = (mean // 16).bit_length()
        high = (freq >> low) + 1
        log = high.bit_length() - 1
        fields += [(1 << log, log + 1), (high - (1 << log), log), (freq % (1 << low), low)]
        mean = (mean + 4 * freq) // 2
    return fields


START = head() + b"\1\0"
BLOCK = bytes((4, 13))  # lanes, log of a segment
ONE = bits(*table(0, 2048))
SEGMENT = struct.pack("<I", 16) + struct.pack("<4I", *[1 << 15] * 4)


@pytest.mark.parametrize("one", KERNELS, ids=lambda k: k.name)
def test_the_least_payload_by_hand(one: Kernel) -> None:
    out = bytearray(b"\xff" * 20)
    one.delta_decode(START + BLOCK + ONE + SEGMENT, b"\1\2" * 10, out, 5)
    assert out == b"\1\2" * 10


HOSTILE = {
    "kind": head(kind=4) + b"\1\0" + BLOCK + ONE + SEGMENT,
    "no contexts": head(contexts=0) + b"\1\0" + BLOCK + ONE + SEGMENT,
    "33 contexts": head(contexts=33) + b"\1\0" + BLOCK + bits(*33 * table(0, 2048)) + SEGMENT,
    "step": head(step=9) + b"\1\0" + BLOCK + ONE + SEGMENT,
    "origin": head(origin=512) + b"\1\0" + BLOCK + ONE + SEGMENT,
    "group 0": head(group=0) + b"\1\0" + BLOCK + ONE + SEGMENT,
    "a huge group": head(group=2**32 - 1) + b"\1\0" + BLOCK + ONE + SEGMENT,
    "an array's mode": head() + b"\4\0" + BLOCK + ONE + SEGMENT,
    "3 lanes": START + bytes((3, 13)) + ONE + SEGMENT,
    "lanes of longer ones": START + bytes((64, 13)) + ONE + SEGMENT,
    "short segments": START + bytes((4, 12)) + ONE + SEGMENT,
    "long segments": START + bytes((4, 21)) + ONE + SEGMENT,
    "blocks of too few": head() + b"\3\2\0\0\0\1\0" + BLOCK + ONE + SEGMENT,
    "a table past 255": START + BLOCK + bits(*table(255, 1, 2047)) + SEGMENT,
    "a table cut short": START + BLOCK + ONE[:2],
    "a table too large": START + BLOCK + bits(*table(0, 2047, 2)) + SEGMENT,
    "a huge frequency": START + BLOCK + bits((1, 1), (0, 8), (1 << 12, 13)) + bytes(99),
    "no end of a table": START + BLOCK + b"\1" + bytes(99),
    "a short segment": START + BLOCK + ONE + struct.pack("<I", 14) + SEGMENT[4:],
    "an odd segment": START + BLOCK + ONE + struct.pack("<I", 17) + SEGMENT[4:] + b"\0",
    "a long segment": START + BLOCK + ONE + struct.pack("<I", 2**32 - 2) + SEGMENT[4:],
    "a low state": START + BLOCK + ONE + SEGMENT[:-4] + struct.pack("<I", (1 << 15) - 1),
    "a high state": START + BLOCK + ONE + SEGMENT[:-4] + struct.pack("<I", 1 << 31),
    "another last state": START + BLOCK + ONE + SEGMENT[:-4] + struct.pack("<I", 1 << 16),
    "words left": START + BLOCK + ONE + struct.pack("<I", 18) + SEGMENT[4:] + b"\0\0",
    "more behind": START + BLOCK + ONE + SEGMENT + b"\0",
    "a token of no element": START + BLOCK + bits(*table(255, 2048)) + SEGMENT + bytes(99),
}  # fmt: skip


@pytest.mark.parametrize("one", KERNELS, ids=lambda k: k.name)
@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_payload(one: Kernel, what: str) -> None:
    with pytest.raises(ValueError):
        one.delta_decode(HOSTILE[what], b"\1\2" * 10, bytearray(20), 5)


@pytest.mark.parametrize("one", KERNELS, ids=lambda k: k.name)
def test_an_empty_table_gives_zeros(one: Kernel) -> None:
    """No encoder lets one be asked for; what it gives is defined and the same everywhere."""
    out = bytearray(20)
    one.delta_decode(START + BLOCK + b"\0" + SEGMENT, b"\1\2" * 10, out, 5)
    assert out == b"\1\2" * 10


def test_a_kernel_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert named_kernel("numpy").name == "numpy"
    with pytest.raises(UsageError, match="there is no kernel 'sse'"):
        named_kernel("sse")
    monkeypatch.setattr(kernels, "_native", lambda: None)
    assert named_kernel("").name == "numpy"
    with pytest.raises(UsageError) as refused:
        named_kernel("scalar")
    assert refused.value.hint == "LOCKGATE_KERNEL may be numpy"
