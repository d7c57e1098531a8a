"""Feeds the store's readers with broken frames and indices: `fuzz_frames.py frames --seconds 600`.

`frames`: real frames of every codec, their bytes or fields changed, are parsed and decoded with
every kernel. `index`: real packs, changed, are opened. What may happen: bytes of the stated size,
the same from every kernel, or an IntegrityError or NotFoundError; within a second of the
processor's time (ten on NumPy's twin) and a bounded memory. Inputs that broke a rule are written
to `--out`.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src")]

from lockgate.core.digests import Digest, digest_of  # noqa: E402
from lockgate.core.errors import IntegrityError, NotFoundError, UsageError  # noqa: E402
from lockgate.store.blobs.memory import MemoryBlobs  # noqa: E402
from lockgate.store.codec.decode import decode  # noqa: E402
from lockgate.store.codec.dtypes import Grid  # noqa: E402
from lockgate.store.codec.encode import Encoder, Object, Source  # noqa: E402
from lockgate.store.codec.frame import NAMES, Frame, Part, pack, parse  # noqa: E402
from lockgate.store.codec.kernel import Kernel, kernel, named_kernel  # noqa: E402
from lockgate.store.pack import FOLDER, Packed, compose, dependencies, read_index  # noqa: E402

SECONDS = {"numpy": 10.0}
MEMORY = 3 << 30
NUMBERS = (0, 1, 2, 63, 64, 127, 128, 255, 4096, 2**16, 2**24, 2**26, 2**31, 2**32 - 1)


class World:
    """Stored objects, and frames that were made from them."""

    def __init__(self) -> None:
        self.objects: dict[Digest, bytes] = {}
        self.frames: list[Frame] = []
        self._encoder = Encoder(
            kernel(), self.fetch, lambda d: 0 if d in self.objects else None, lambda _: ()
        )
        self._fill(np.random.default_rng(1))

    def fetch(self, digest: Digest) -> bytes:
        """Returns an object; raises NotFoundError."""
        if digest not in self.objects:
            raise NotFoundError("it is not here")
        return self.objects[digest]

    def _fill(self, rng: np.random.Generator) -> None:
        weights = rng.normal(0, 0.02, (512, 128)).astype("<f4")
        grid = Grid(dtype="F32", shape=weights.shape)
        source = self._source(grid, weights.tobytes())
        halves = Grid(dtype="BF16", shape=weights.shape)
        base = (weights.view("<u4") >> 16).astype("<u2")
        half = self._source(halves, base.tobytes())
        rank = rng.normal(0, 0.01, (512, 4)) @ rng.normal(0, 0.1, (4, 128))
        merged = _rounded((base.astype("<u4") << 16).view("<f4") + rank.astype("<f4"))
        scale = np.abs(weights).max(axis=1, keepdims=True) / np.float32(127)
        rows = np.clip(np.rint(weights / scale), -127, 127).astype(np.int8)
        decayed = weights.copy()
        for _ in range(20):
            decayed *= np.float32(1 - 1e-6)
        near = base + rng.integers(0, 9, base.shape).astype("<u2")
        for data, like, sources in (
            (near, halves, (half,)), (base, halves, (half,)), (merged, halves, (half,)),
            (_rounded(weights), halves, (source,)),
            (weights.astype("<f2"), Grid(dtype="F16", shape=weights.shape), (source,)),
            (rows, replace(grid, dtype="I8"), (source,)), (decayed, grid, (source,)),
            (base[:, :64].copy(), Grid(dtype="BF16", shape=(512, 64)), (half,)), (near, halves, ()),
        ):  # fmt: skip
            self._encode(data.tobytes(), like, sources)
        self._encode(b"a line of text, and another one\n" * 400, None, ())
        self._encode(rng.bytes(3000), None, ())

    def _source(self, grid: Grid, data: bytes) -> Source:
        half = len(data) // 2
        parts = [data[:half], data[half:]] if len(self.objects) else [data]
        self.objects.update((digest_of(part), part) for part in parts)
        return Source(grid=grid, pieces=tuple((digest_of(part), len(part)) for part in parts))

    def _encode(self, data: bytes, grid: Grid | None, sources: tuple[Source, ...]) -> None:
        given = Object(digest=digest_of(data), data=data, grid=grid, sources=sources)
        encoded = self._encoder.encode(given)
        self.objects.update((extra.digest, bytes(extra.data)) for extra in encoded.beside)
        self.frames.append(replace(encoded.frame, payload=bytes(encoded.frame.payload)))


def _rounded(values: np.ndarray) -> np.ndarray:
    bits = values.view("<u4")
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")


def broken_bytes(data: bytes, rng: random.Random) -> bytes:
    """Returns `data` with a few bytes changed, cut, doubled or put in."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out) + 1) >> rng.choice((0, 0, 2, 4, 6, 8))
        way = rng.randrange(6)
        if way == 0:
            del out[at : at + rng.choice((1, 2, 8, 1000))]
        elif way == 1:
            out[at:at] = rng.randbytes(rng.choice((1, 2, 4)))
        elif way == 2:
            out[at : at + 4] = rng.choice(NUMBERS).to_bytes(4, "little")
        elif at < len(out):
            out[at] = rng.choice((out[at] ^ 1 << rng.randrange(8), rng.randrange(256)))
    return bytes(out)


def broken_frame(frame: Frame, world: World, rng: random.Random) -> Frame:
    """Returns `frame` with one of its fields changed."""
    way = rng.randrange(10)
    if way < 5:
        return replace(frame, payload=broken_bytes(bytes(frame.payload), rng))
    if way == 5:
        size = rng.choice((*NUMBERS[:-2], frame.size - 1, frame.size + 4, frame.size * 2))
        return replace(frame, size=max(size, 0))
    if way == 6:
        return replace(frame, codec=rng.randrange(len(NAMES)))
    deps = tuple(rng.choices(list(world.objects), k=rng.randint(1, 3)))
    if way == 7:
        return replace(frame, deps=deps, depth=1, parts=())
    number = [rng.choice((*NUMBERS, 256, 65536)) for _ in range(4)]
    part = Part(dep=rng.randrange(len(deps)), begin=number[0], block=number[1], stride=number[2],
                count=number[3])  # fmt: skip
    return replace(frame, deps=deps, depth=1, parts=(part,) * rng.randint(1, 3))


def measured(work: Callable[[], object], most: float) -> object:
    """Returns what `work` returns, or its error of ours; raises AssertionError when it is slow."""
    began = time.process_time()
    try:
        return work()
    except (IntegrityError, NotFoundError) as error:
        return error
    finally:
        took = time.process_time() - began
        assert took <= most, f"it took {took:.1f} s"


def decoded(data: bytes, check: bool, world: World, one: Kernel) -> object:
    """Returns the bytes of a packed frame, of exactly the stated size."""
    frame = parse(data, check=check)
    found = decode(frame, world.fetch, one)
    assert len(found) == frame.size
    return bytes(found)


def try_frame(world: World, kernels: list[Kernel], rng: random.Random, seen: Counter[str]) -> bytes:
    """Breaks a frame and decodes it; returns its bytes."""
    frame = rng.choice(world.frames)
    check = rng.random() < 0.7
    try:
        data = pack(broken_frame(frame, world, rng))
    except (ValueError, IntegrityError):
        data = pack(frame)
    if not check:
        data = broken_bytes(data, rng)
    yield_data(data)
    answers = []
    for one in kernels:
        if one.name == "numpy" and (len(data) > 200_000 or rng.random() > 0.1):
            continue
        work = lambda one=one: decoded(data, check, world, one)  # noqa: E731
        answers.append(measured(work, SECONDS.get(one.name, 1.0)))
    assert len({a if isinstance(a, bytes) else type(a) for a in answers}) == 1, "kernels differ"
    seen[NAMES[frame.codec] + (" bytes" if isinstance(answers[0], bytes) else " refused")] += 1
    return data


def a_pack(world: World) -> bytes:
    """Returns a pack of the world's frames."""
    frames = [
        Packed(digest=digest_of(b"%d" % i), data=pack(frame), size=frame.size, codec=frame.codec,
               depth=frame.depth, deps=frame.deps)
        for i, frame in enumerate(world.frames)
    ]  # fmt: skip
    parts, _ = compose(frames)
    return b"".join(parts)


def try_index(whole: bytes, rng: random.Random, seen: Counter[str]) -> None:
    """Breaks a pack near its end and reads its index."""
    from blake3 import blake3

    body, tail = bytearray(whole[:-48]), bytearray(whole[-48:])
    length = int.from_bytes(tail[4:8], "little")
    index = (
        broken_bytes(bytes(body[-length:]), rng) if rng.random() < 0.7 else bytes(body[-length:])
    )
    if rng.random() < 0.7:
        tail[8:40] = blake3(index).digest()
        tail[4:8] = len(index).to_bytes(4, "little")
    data = bytes(body[:-length]) + index + bytes(tail)
    if rng.random() < 0.3:
        cut = rng.randrange(60)
        data = data[:-60] + broken_bytes(data[-60:], rng)[cut:]
    data = data[rng.choice((0, 0, 0, len(data) - 20, len(data) - 100)) :]
    yield_data(data)
    blobs = MemoryBlobs()
    name = FOLDER + "ab/" + "ab" * 16 + ".pack"
    blobs.write(name, [data])

    def work() -> object:
        entries, deps = read_index(blobs, name, len(data))
        for entry, (_, needs) in zip(entries, dependencies(entries, deps), strict=True):
            assert int(entry["offset"]) + int(entry["length"]) <= len(data)
            assert len(needs) == entry["deps"]
        return b""

    answer = measured(work, 1.0)
    seen["read" if isinstance(answer, bytes) else "refused"] += 1


_LAST: list[bytes] = [b""]


def yield_data(data: bytes) -> None:
    """Keeps the input that is under way, for whoever writes it down when it breaks a rule."""
    _LAST[0] = data


def kernels_here() -> Iterator[Kernel]:
    """Yields every kernel of this machine."""
    for name in ("scalar", "avx2", "avx512", "avx512-gather", "numpy"):
        try:
            yield named_kernel(name)
        except UsageError:
            continue


def main() -> None:
    """Runs one target until its time is over."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("target", choices=("frames", "index"))
    words.add_argument("--seconds", type=float, default=60)
    words.add_argument("--seed", type=int, default=1)
    words.add_argument("--out", type=Path, default=ROOT / "build" / "fuzz")
    given = words.parse_args()
    warnings.simplefilter("error")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    world, kernels = World(), list(kernels_here())
    whole, rng, seen = a_pack(world), random.Random(given.seed), Counter[str]()
    found = runs = 0
    end = time.monotonic() + given.seconds
    while time.monotonic() < end and found < 20:
        runs += 1
        try:
            if given.target == "frames":
                try_frame(world, kernels, rng, seen)
            else:
                try_index(whole, rng, seen)
        except Exception as error:  # noqa: BLE001
            found += 1
            given.out.mkdir(parents=True, exist_ok=True)
            file = given.out / f"{given.target}-{given.seed}-{runs}"
            file.write_bytes(_LAST[0])
            print(f"{file}: {type(error).__name__}: {error}")
    print(f"{given.target}: {runs} runs, {found} findings;", dict(sorted(seen.items())))
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
