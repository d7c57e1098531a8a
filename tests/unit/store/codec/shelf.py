"""A store in a dictionary, and made-up tensors, for tests of the codecs."""

from __future__ import annotations

import numpy as np

from lockgate.core.digests import Digest, digest_of
from lockgate.core.errors import NotFoundError
from lockgate.store.codec.decode import decode_checked
from lockgate.store.codec.dtypes import Grid, piece_bytes
from lockgate.store.codec.encode import Encoded, Encoder, Object, Source
from lockgate.store.codec.frame import NAMES, Frame, pack, parse
from lockgate.store.codec.kernel import Kernel, named_kernel


class Shelf:
    """Keeps packed frames by digest; decodes through chains."""

    def __init__(self, kernel: Kernel | None = None) -> None:
        self.kernel = kernel or named_kernel("")
        self.stored: dict[Digest, bytes] = {}
        self.encoder = Encoder(self.kernel, self.fetch, self.depth, self.bases)

    def frame(self, digest: Digest) -> Frame:
        if digest not in self.stored:
            raise NotFoundError(f"{digest} is not here")
        return parse(self.stored[digest])

    def fetch(self, digest: Digest) -> bytes:
        return bytes(decode_checked(digest, self.frame(digest), self.fetch, self.kernel))

    def depth(self, digest: Digest) -> int | None:
        return parse(self.stored[digest], check=False).depth if digest in self.stored else None

    def bases(self, digest: Digest) -> tuple[Digest, ...]:
        return parse(self.stored[digest], check=False).deps if digest in self.stored else ()

    def put(self, given: Object) -> Encoded:
        """Encodes, keeps, and decodes again: the bytes are the same, to the bit."""
        encoded = self.encoder.encode(given)
        for extra in encoded.beside:
            if extra.digest not in self.stored:
                self.put(extra)
        self.stored[given.digest] = pack(encoded.frame)
        assert self.fetch(given.digest) == bytes(given.data)
        return encoded

    def tensor(
        self, data: np.ndarray, dtype: str, sources: tuple[Source, ...] = ()
    ) -> tuple[Source, list[Frame]]:
        """Puts a tensor piece by piece; returns it as a source, and the frames of its pieces."""
        grid = Grid(dtype=dtype, shape=data.shape)
        raw, step = data.tobytes(), piece_bytes(grid)
        pieces, frames = [], []
        for begin in range(0, len(raw), step):
            part = raw[begin : begin + step]
            given = Object(
                digest=digest_of(part), data=part, grid=grid, begin=begin, sources=sources
            )
            frames.append(self.put(given).frame)
            pieces.append((given.digest, len(part)))
        return Source(grid=grid, pieces=tuple(pieces)), frames


def codec(frame: Frame) -> str:
    return NAMES[frame.codec]


def rounded(values: np.ndarray) -> np.ndarray:
    """float32 as the bits of bfloat16, to nearest, ties to even."""
    bits = values.astype("<f4").view("<u4")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def weights(shape: tuple[int, ...], seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.02, shape).astype("<f4")


def wide(bits: np.ndarray) -> np.ndarray:
    return (bits.astype("<u4") << 16).view("<f4")
