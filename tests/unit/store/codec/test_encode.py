"""What the encoder chooses, and that all of it comes back."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockgate.core.digests import Digest, digest_of
from lockgate.store.codec import encode
from lockgate.store.codec.decode import DRIFT, LOW_RANK, PLAIN
from lockgate.store.codec.dtypes import Grid
from lockgate.store.codec.encode import Object, Source
from lockgate.store.codec.frame import MAX_DEPTH, Frame, parse
from lockgate.store.codec.kernel import named_kernel

from .shelf import Shelf, codec, rounded, weights, wide

SHAPE = (512, 256)


def given_of(data: bytes, grid: Grid | None = None, *sources: Source) -> Object:
    return Object(digest=digest_of(data), data=data, grid=grid, sources=sources)


def one(frames: list[Frame]) -> Frame:
    (frame,) = frames
    return frame


def near(base: np.ndarray, seed: int = 5) -> np.ndarray:
    return base + np.random.default_rng(seed).integers(-3, 4, base.shape).astype(base.dtype)


def test_what_is_tiny_or_noise_stays_as_it_is() -> None:
    shelf = Shelf()
    noise = np.random.default_rng(1).bytes(20_000)
    for data in (b"", b"a" * 128, noise):
        assert codec(shelf.put(given_of(data)).frame) == "raw"
    grid = Grid(dtype="U8", shape=(20_000,))
    assert codec(shelf.put(given_of(noise, grid)).frame) == "raw"


def test_text_is_zipped() -> None:
    frame = Shelf().put(given_of(b"one line of a tokenizer, and the next\n" * 300)).frame
    assert codec(frame) == "zstd"


def test_weights_alone_are_planes() -> None:
    frame = one(Shelf().tensor(rounded(weights(SHAPE)), "BF16")[1])
    assert codec(frame) == "planes"
    assert len(frame.payload) < 0.75 * frame.size


def test_a_tensor_of_an_unknown_type_is_stored_too() -> None:
    shelf = Shelf()
    base = np.zeros(4000, "<f8")
    source, frames = shelf.tensor(base, "F64")
    assert codec(one(frames)) == "zstd"
    base[7] = 1
    assert codec(one(shelf.tensor(base, "F64", (source,))[1])) == "zstd"
    strange = given_of(b"abc" * 5001, Grid(dtype="BF16", shape=(5001, 3)), source)
    assert codec(shelf.put(strange).frame) == "zstd"


def test_the_same_bytes_elsewhere_are_a_copy() -> None:
    shelf = Shelf()
    fused = rounded(weights((768, 256)))
    source, _ = shelf.tensor(fused, "BF16")
    for part in (fused[256:512], fused[512:], fused[:256]):
        frame = one(shelf.tensor(part.copy(), "BF16", (source,))[1])
        assert (codec(frame), len(frame.payload)) == ("copy", 0)
    columns = one(shelf.tensor(fused[:, 128:].copy(), "BF16", (source,))[1])
    assert (codec(columns), len(columns.payload)) == ("copy", 0)


def test_a_copy_across_pieces() -> None:
    """3000 rows of 4 KiB lie in three pieces; some of them, in columns, in two."""
    shelf = Shelf()
    whole = rounded(weights((3000, 2048)))
    source, frames = shelf.tensor(whole, "BF16")
    assert len(frames) == 3
    frame = one(shelf.tensor(whole[1000:2000].copy(), "BF16", (source,))[1])
    assert (codec(frame), len(frame.deps)) == ("copy", 2)
    found, frames = shelf.tensor(whole[:, 1024:].copy(), "BF16", (source,))
    assert {codec(frame) for frame in frames} == {"copy"}
    assert found.grid.shape == (3000, 1024)


def test_a_cast_is_two_bytes() -> None:
    shelf = Shelf()
    base = weights(SHAPE)
    full, _ = shelf.tensor(base, "F32")
    half, frames = shelf.tensor(rounded(base), "BF16", (full,))
    assert (codec(one(frames)), len(one(frames).payload)) == ("cast", 2)
    frame = one(shelf.tensor(base.astype("<f2"), "F16", (full,))[1])
    assert (codec(frame), len(frame.payload)) == ("cast", 2)
    again = Shelf()
    alone, _ = again.tensor(rounded(base), "BF16")
    frame = one(again.tensor(wide(rounded(base)), "F32", (alone,))[1])
    assert (codec(frame), len(frame.payload)) == ("cast", 2)
    assert half.grid.dtype == "BF16"


def test_a_cast_with_one_other_bit_is_no_cast() -> None:
    shelf = Shelf()
    base = weights(SHAPE)
    full, _ = shelf.tensor(base, "F32")
    data = rounded(base)
    data[-1, -1] ^= 1
    assert codec(one(shelf.tensor(data, "BF16", (full,))[1])) == "planes"


def test_rows_of_int8_and_their_scales_are_recipes() -> None:
    shelf = Shelf()
    base = rounded(weights(SHAPE))
    base[3] = 0
    source, _ = shelf.tensor(base, "BF16")
    scale = np.abs(wide(base)).max(axis=1, keepdims=True) / np.float32(127)
    rows = np.clip(np.rint(wide(base) / np.where(scale == 0, 1, scale)), -127, 127).astype(np.int8)
    for data, dtype in ((rows, "I8"), (scale, "F32")):
        frame = one(shelf.tensor(data, dtype, (source,))[1])
        assert (codec(frame), len(frame.payload)) == ("quantize", 6)


def test_blocks_of_q8_0_are_a_recipe() -> None:
    shelf = Shelf()
    base = weights(SHAPE)
    source, _ = shelf.tensor(base, "F32")
    out = bytearray()
    for block in base.reshape(-1, 32):  # ggml's quantize_row_q8_0, said again
        scale = np.abs(block).max() / np.float32(127)
        inverse = np.float32(1) / scale if scale else np.float32(0)
        scaled = block * inverse
        rounded_away = np.trunc(scaled + np.copysign(np.float32(0.5), scaled))
        out += scale.astype("<f2").tobytes() + rounded_away.astype(np.int8).tobytes()
    frame = shelf.put(given_of(bytes(out), Grid(dtype="GGML_Q8_0", shape=SHAPE), source)).frame
    assert (codec(frame), len(frame.payload)) == ("quantize", 6)


def test_a_fine_tuned_tensor_is_a_difference() -> None:
    shelf = Shelf()
    base = rounded(weights(SHAPE))
    source, frames = shelf.tensor(base, "BF16")
    frame = one(shelf.tensor(near(base), "BF16", (source,))[1])
    assert (codec(frame), frame.payload[0], frame.depth) == ("delta", PLAIN, 1)
    assert len(frame.payload) < 0.5 * len(one(frames).payload)


def test_the_nearest_source_wins() -> None:
    shelf = Shelf()
    base = rounded(weights(SHAPE))
    far, _ = shelf.tensor(near(base, 1) + 60, "BF16")
    other, _ = shelf.tensor(rounded(weights(SHAPE, 9)), "BF16")
    best, _ = shelf.tensor(base, "BF16")
    frame = one(shelf.tensor(near(base, 2), "BF16", (far, other, best))[1])
    assert frame.deps == (best.pieces[0][0],)


def merged(base: np.ndarray, seed: int, rank: int = 8) -> np.ndarray:
    """bf16 weights with an adapter merged into them."""
    rng = np.random.default_rng(seed)
    rows, columns = base.shape
    change = rng.normal(0, 0.02, (rows, rank)) @ rng.normal(0, 0.05, (rank, columns))
    return rounded(wide(base) + change.astype("<f4"))


@pytest.mark.parametrize("shape", [(1024, 512), (4096, 768)])
def test_a_merged_adapter_is_a_product(shape: tuple[int, int]) -> None:
    shelf = Shelf()
    base = rounded(weights(shape))
    source, _ = shelf.tensor(base, "BF16")
    child = merged(base, 3)
    frames = shelf.tensor(child, "BF16", (source,))[1]
    assert {frame.payload[0] for frame in frames} == {LOW_RANK}
    assert len({frame.deps[-1] for frame in frames}) == 1, "the pieces share their factors"
    factors = len(shelf.stored[frames[0].deps[-1]])
    plain = len(shelf.kernel.delta_encode(child.tobytes(), base.tobytes(), 5, shape[1]))
    assert 3 * (sum(len(frame.payload) for frame in frames) + factors) < plain


def test_each_adapter_of_one_base_has_factors_of_its_own() -> None:
    """The encoder remembers what one piece found for the next ones, not for the next model."""
    shelf = Shelf()
    base = rounded(weights((4096, 768)))
    source, _ = shelf.tensor(base, "BF16")
    shelf.tensor(near(base), "BF16", (source,))  # one that has no low rank
    found = set()
    for seed in (3, 4):
        frames = shelf.tensor(merged(base, seed), "BF16", (source,))[1]
        assert {frame.payload[0] for frame in frames} == {LOW_RANK}
        found |= {frame.deps[-1] for frame in frames}
    assert len(found) == 2


def test_weight_decay_is_a_drift() -> None:
    shelf = Shelf()
    base = weights(SHAPE)
    source, _ = shelf.tensor(base, "F32")
    decayed = base.copy()
    for _ in range(30):
        decayed *= np.float32(1 - 2e-6)
    decayed[:40] += weights((40, SHAPE[1]), 8) / 10  # these rows were trained
    frame = one(shelf.tensor(decayed, "F32", (source,))[1])
    assert (codec(frame), frame.payload[0]) == ("delta", DRIFT)
    plain = len(shelf.kernel.delta_encode(decayed.tobytes(), base.tobytes(), 6, SHAPE[1]))
    assert len(frame.payload) < 0.5 * plain


def test_chains_stay_short() -> None:
    shelf = Shelf()
    data = rounded(weights(SHAPE))
    sources = [shelf.tensor(data, "BF16")[0]]
    depths = []
    for step in range(9):
        data = near(data, step)
        source, frames = shelf.tensor(data, "BF16", (sources[-1],))
        sources.append(source)
        depths.append(one(frames).depth)
    assert max(depths) == MAX_DEPTH
    assert depths[:MAX_DEPTH] == list(range(1, MAX_DEPTH + 1))
    for before, after in pairwise(sources):
        frame = shelf.frame(after.pieces[0][0])
        assert frame.depth == 1 + max(shelf.depth(base) or 0 for base in frame.deps)
        assert before.grid == after.grid


def test_a_source_that_is_not_here_is_none() -> None:
    shelf = Shelf()
    base = rounded(weights(SHAPE))
    grid = Grid(dtype="BF16", shape=SHAPE)
    lost = Source(grid=grid, pieces=((Digest("blake3:" + "0" * 64), base.nbytes),))
    nothing = Source(grid=grid, pieces=())
    full = Source(grid=Grid(dtype="F32", shape=SHAPE), pieces=lost.pieces)
    assert codec(one(shelf.tensor(base, "BF16", (nothing, lost, full))[1])) == "planes"
    source, _ = shelf.tensor(base, "BF16")
    frame = one(shelf.tensor(merged(base, 2), "BF16", (nothing, lost, full, source))[1])
    assert codec(frame) == "delta"


def test_a_damaged_source_is_none() -> None:
    shelf = Shelf()
    base = rounded(weights(SHAPE))
    source, _ = shelf.tensor(base, "BF16")
    digest = source.pieces[0][0]
    frame = bytearray(shelf.stored[digest])
    frame[-5] ^= 1
    shelf.stored[digest] = bytes(frame)
    grid = Grid(dtype="BF16", shape=SHAPE)
    shelf.put(given_of(near(base).tobytes(), grid, source))
    full = Grid(dtype="F32", shape=SHAPE)
    shelf.put(given_of(wide(base).tobytes(), full, source))


def test_what_is_stored_anew_does_not_rest_on_itself() -> None:
    """A base that was damaged is put again while a child's bytes are at hand: no ring is made."""
    shelf = Shelf()
    base = rounded(weights(SHAPE))
    child = near(base)
    source, _ = shelf.tensor(base, "BF16")
    derived, frames = shelf.tensor(child, "BF16", (source,))
    grandchild, _ = shelf.tensor(near(child), "BF16", (derived,))
    decoded = {digest: shelf.fetch(digest) for digest in shelf.stored}
    shelf.encoder.fetch = decoded.__getitem__
    assert one(frames).depth == 1
    for last in (source, derived, grandchild):
        assert shelf.tensor(base, "BF16", (last,))[1][0].deps == ()


def test_a_source_that_lies_about_its_pieces() -> None:
    shelf = Shelf()
    base = rounded(weights(SHAPE))
    source, _ = shelf.tensor(base, "BF16")
    digest, size = source.pieces[0]
    child = near(base)
    for pieces in (
        ((digest, size // 2), (digest, size // 2)),
        ((digest, size * 1000),),
        ((digest, 2**53), (digest, 2**53)),
        ((digest, 0), (digest, size)),
        ((digest, 100),) * 3000,
    ):
        for shape in (SHAPE, (512, 2**40), (2**40, 256), (2**26, 2**26), (2, *SHAPE), (2**50,), ()):
            grid = Grid(dtype="BF16", shape=shape)
            shelf.put(given_of(child.tobytes(), Grid(dtype="BF16", shape=SHAPE),
                               Source(grid=grid, pieces=pieces)))  # fmt: skip
            shelf.put(given_of(child.tobytes(), grid, source))
            for dtype in ("F32", "I8", "F16", "GGML_Q8_0"):
                other = Grid(dtype=dtype, shape=shape)
                shelf.put(given_of(child.tobytes(), other, Source(grid=grid, pieces=pieces)))


def test_a_base_of_many_small_pieces_gives_a_frame_that_can_be_read() -> None:
    """More dependencies than a frame may have: another codec, not a frame that no one parses."""
    shelf = Shelf()
    base = rounded(weights(SHAPE))
    raw = base.tobytes()
    parts = [raw[at : at + 1024] for at in range(0, len(raw), 1024)]
    for part in parts:
        shelf.put(given_of(part))
    pieces = tuple((digest_of(part), 1024) for part in parts)
    source = Source(grid=Grid(dtype="BF16", shape=SHAPE), pieces=pieces)
    for count in (len(parts), 65, 64, 63):
        grid = Grid(dtype="BF16", shape=(count * 2, 256))
        some = Source(grid=grid, pieces=source.pieces[:count])
        data = raw[: count * 1024]
        assert len(shelf.put(given_of(data, grid, some)).frame.deps) == (count if count < 65 else 0)
        moved = near(np.frombuffer(data, "<u2")).tobytes()
        shelf.put(given_of(moved, grid, some))


def test_a_huge_fused_tensor_does_not_hold_us_up() -> None:
    """A stranger's shape has 2^40 places where the piece might lie; not all are looked at."""
    shelf = Shelf()
    base = rounded(weights((4, 64)))
    source, _ = shelf.tensor(base, "BF16")
    huge = Source(grid=Grid(dtype="BF16", shape=(2**42, 64)), pieces=source.pieces)
    began = time.process_time()
    shelf.put(given_of(near(base).tobytes(), Grid(dtype="BF16", shape=(4, 64)), huge))
    assert time.process_time() - began < 2


def test_more_than_a_kernel_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "MAX_SOURCE", 100_000)
    shelf = Shelf()
    base = rounded(weights(SHAPE))
    source, frames = shelf.tensor(base, "BF16")
    assert codec(one(frames)) in ("raw", "zstd")
    assert codec(one(shelf.tensor(base + 1, "BF16", (source,))[1])) in ("raw", "zstd")


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_infinities_and_no_numbers(dtype: str) -> None:
    shelf = Shelf()
    width = "<u4" if dtype == "F32" else "<u2"
    rng = np.random.default_rng(4)
    odd = np.frombuffer(rng.bytes(200_000), width).reshape(-1, 100).copy()
    exponent = {"BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F800000}[dtype]
    odd[::3] |= np.array(exponent, width)
    source, _ = shelf.tensor(odd, dtype)
    shelf.tensor(near(odd), dtype, (source,))
    for other in {"BF16", "F16", "F32"} - {dtype}:
        shelf.tensor(
            rounded(weights(odd.shape)) if other != "F32" else weights(odd.shape), other, (source,)
        )


def test_a_signalling_nan_in_a_cast_is_kept() -> None:
    """Machines quieten a NaN in ways of their own: the rule gives these bits, or is not taken."""
    shelf = Shelf()
    half = rounded(weights(SHAPE)).copy()
    half[5, 5], half[6, 6], half[7, 7] = 0x7F81, 0xFFC0, 0x7FC0
    source, _ = shelf.tensor(half, "BF16")
    shelf.tensor(wide(half), "F32", (source,))
    full = weights(SHAPE).view("<u4").copy()
    full[5, 5], full[6, 6] = 0x7F800001, 0xFFC00001
    source, _ = shelf.tensor(full, "F32")
    with np.errstate(invalid="ignore"):
        shelf.tensor(full.view("<f4").astype("<f2"), "F16", (source,))
    shelf.tensor(rounded(full.view("<f4")), "BF16", (source,))


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(
        ["BF16", "F16", "F32", "I8", "U8", "I16", "I32", "F8_E4M3", "BOOL", "F64"]
    ),
    rows=st.integers(1, 70),
    columns=st.integers(1, 300),
    how=st.sampled_from(["same", "near", "other", "rows", "columns", "as f32"]),
    seed=st.integers(0, 99),
)
def test_whatever_it_is_it_comes_back(
    dtype: str, rows: int, columns: int, how: str, seed: int
) -> None:
    shelf = Shelf()
    grid = Grid(dtype=dtype, shape=(rows, columns))
    rng = np.random.default_rng(seed)
    base = np.frombuffer(rng.bytes(rows * columns * grid.width), np.uint8).reshape(rows, -1)
    source, _ = shelf.tensor(base.view(f"<u{grid.width}"), dtype)
    noise = np.frombuffer(rng.bytes(base.size), np.uint8).reshape(base.shape)
    data = {
        "same": base,
        "as f32": base,
        "near": base ^ (rng.random(base.shape) < 0.1),
        "rows": base[rows // 2 :],
        "columns": base[:, : columns // 2 * grid.width],
        "other": noise,
    }[how]
    child = np.ascontiguousarray(data).astype(np.uint8)
    if child.size:
        shape = (child.shape[0], child.shape[1] // grid.width)
        other = "F32" if how == "as f32" else dtype
        shelf.put(given_of(child.tobytes(), Grid(dtype=other, shape=shape), source))


@pytest.mark.parametrize("name", ["numpy", "scalar"])
def test_another_kernel_decodes_what_the_fastest_encoded(name: str) -> None:
    """A version that was published on one machine is served from another."""
    shelf = Shelf()
    base = rounded(weights((1024, 512)))
    source, _ = shelf.tensor(base, "BF16")
    for data, dtype in ((near(base), "BF16"), (merged(base, 1), "BF16"), (wide(base), "F32")):
        shelf.tensor(data, dtype, (source,))
    other = Shelf(named_kernel(name))
    other.stored = shelf.stored
    for digest in shelf.stored:
        assert other.fetch(digest) == shelf.fetch(digest)
    for digest, data in shelf.stored.items():
        frame = parse(data)
        if codec(frame) == "planes":
            given = given_of(shelf.fetch(digest), Grid(dtype="BF16", shape=(1024, 512)))
            if len(given.data) == base.nbytes:
                assert bytes(other.encoder.encode(given).frame.payload) == bytes(frame.payload)
