"""The peers that know what a tensor is: ZipNN, and BitX by NumPy and zstd."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from peers import Borg, Dvc, GitLfs, PatchFrom, Peer, Restic, Xet, Zstd, files_of

_FLOATS = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


class TensorStore(Peer):
    """ZipNN: each tensor once, by the digest of its bytes, coded alone."""

    name = "ZipNN + tensor dedup"
    needs = ("zipnn", "zstandard", "numpy", "blake3")
    level = 3
    delta = False

    def ready(self, folder: Path, label: str) -> None:
        import blake3
        import numpy as np
        import zstandard

        self.blake3, self.np, self.zstandard = blake3.blake3, np, zstandard
        self.zipnn: Any = None
        if find_spec("zipnn"):
            from zipnn import ZipNN

            self.zipnn = ZipNN
        (self.store / "objects").mkdir(exist_ok=True)

    def put(self, folder: Path, label: str, parent: Path | None) -> None:
        above = _tensor_map(parent) if parent and self.delta else {}
        listing = []
        for path in files_of(folder):
            head, tensors = read_header(path)
            entries = []
            with path.open("rb") as file:
                for name, dtype, begin, size in tensors:
                    file.seek(begin)
                    data = file.read(size)
                    entries.append(self._store(name, dtype, data, above))
            listing.append([str(path.relative_to(folder)), head.hex(), entries])
        text = json.dumps(listing, separators=(",", ":")).encode()
        packed = self.zstandard.ZstdCompressor(level=3).compress(text)
        (self.store / f"{label}.json.zst").write_bytes(packed)

    def _store(self, name: str, dtype: str, data: bytes, above: dict[str, Any]) -> str:
        digest = str(self.blake3(data).hexdigest())[:40]
        target = self.store / "objects" / digest
        base = above.get(name)
        like = base is not None and base[1:] == (dtype, len(data)) and dtype in ("BF16", "F32")
        if target.exists():
            return digest
        if like and base is not None:
            before = _read_at(base[0], len(data))
            if before == data:  # a store that holds the base decoded refers to it
                target.write_bytes(b"=" + json.dumps([str(base[0][0]), base[0][1]]).encode())
                return digest
            head = json.dumps([str(base[0][0]), base[0][1], len(data), dtype]).encode()
            target.write_bytes(b"B%04d" % len(head) + head + self._xor(before, data, dtype))
        elif dtype in _FLOATS and self.zipnn and len(data) >= 1024:
            coder = self.zipnn(bytearray_dtype=_FLOATS[dtype], input_format="byte", threads=1)
            target.write_bytes(b"N%-8s" % dtype.encode() + coder.compress(bytearray(data)))
        else:
            packed = self.zstandard.ZstdCompressor(level=self.level).compress(data)
            target.write_bytes(b"Z" + packed)
        return digest

    def _xor(self, before: bytes, data: bytes, dtype: str) -> bytes:
        """BitX: the exponents and the rest of the XOR as two streams, zstd each."""
        np = self.np
        if dtype == "BF16":
            x = np.frombuffer(data, np.uint16) ^ np.frombuffer(before, np.uint16)
            first = ((x >> 7) & 255).astype(np.uint8)
            rest = ((x >> 8) & 128 | x & 127).astype(np.uint8)
        else:
            x = np.frombuffer(data, np.uint32) ^ np.frombuffer(before, np.uint32)
            first = ((x >> 23) & 255).astype(np.uint8)
            wide = (x >> 8) & 0x800000 | x & 0x7FFFFF
            rest = np.ascontiguousarray(wide.view(np.uint8).reshape(-1, 4)[:, :3])
        coder = self.zstandard.ZstdCompressor(level=self.level)
        one, two = coder.compress(first), coder.compress(rest)
        return len(one).to_bytes(8, "little") + one + two

    def get(self, label: str, target: Path) -> None:
        packed = (self.store / f"{label}.json.zst").read_bytes()
        target.mkdir()
        for name, head, entries in json.loads(self.zstandard.ZstdDecompressor().decompress(packed)):
            out = target / name
            out.parent.mkdir(parents=True, exist_ok=True)
            with out.open("wb") as sink:
                sink.write(bytes.fromhex(head))
                for digest in entries:
                    sink.write(self._load((self.store / "objects" / digest).read_bytes()))

    def _load(self, raw: bytes) -> Any:
        if raw[:1] == b"=":
            source, begin = json.loads(raw[1:])
            return _read_at((Path(source), begin), -1)
        if raw[:1] == b"B":
            end = 5 + int(raw[1:5])
            source, begin, size, dtype = json.loads(raw[5:end])
            return self._unxor(_read_at((Path(source), begin), size), raw[end:], dtype)
        if raw[:1] == b"N":
            dtype = _FLOATS[raw[1:9].decode().strip()]
            coder = self.zipnn(bytearray_dtype=dtype, input_format="byte", threads=1)
            return coder.decompress(raw[9:])
        return self.zstandard.ZstdDecompressor().decompress(raw[1:])

    def _unxor(self, before: bytes, raw: bytes, dtype: str) -> Any:
        np = self.np
        middle = 8 + int.from_bytes(raw[:8], "little")
        coder = self.zstandard.ZstdDecompressor()
        first = np.frombuffer(coder.decompress(raw[8:middle]), np.uint8)
        rest = np.frombuffer(coder.decompress(raw[middle:]), np.uint8)
        if dtype == "BF16":
            x = (first.astype(np.uint16) << 7) | (rest & 127)
            x |= (rest & 128).astype(np.uint16) << 8
            return (x ^ np.frombuffer(before, np.uint16)).data
        wide = np.zeros((first.size, 4), np.uint8)
        wide[:, :3] = rest.reshape(-1, 3)
        y = wide.view(np.uint32).ravel()
        x = (first.astype(np.uint32) << 23) | (y & 0x7FFFFF) | ((y & 0x800000) << 8)
        return (x ^ np.frombuffer(before, np.uint32)).data


class BitX(TensorStore):
    """BitX (ZipLLM, NSDI'26) as its paper tells: XOR with the base, two streams, zstd-3.

    What has no base of its type and shape is coded by ZipNN. The base is read decoded, from the
    folder it was put from, both ways: decoding it is in nobody's time but ours.
    """

    name = "BitX (zstd-3)"
    needs = ("zstandard", "numpy", "blake3")
    delta = True


class BitX1(BitX):
    name = "BitX (zstd-1)"
    level = 1


def read_header(path: Path) -> tuple[bytes, list[tuple[str, str, int, int]]]:
    """Returns a safetensors file's head, and (name, type, begin, size) of its tensors, in order.

    Any other file is one tensor of bytes.
    """
    size = path.stat().st_size
    if path.suffix != ".safetensors":
        return b"", [("", "U8", 0, size)]
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length)
    found = [
        (e["data_offsets"][0], e["data_offsets"][1], name, e["dtype"])
        for name, e in json.loads(text).items()
        if name != "__metadata__"
    ]
    at = 8 + length
    head = length.to_bytes(8, "little") + text
    return head, [(name, dtype, at + a, b - a) for a, b, name, dtype in sorted(found)]


def _tensor_map(folder: Path) -> dict[str, tuple[tuple[Path, int, int], str, int]]:
    return {
        name: ((path, begin, size), dtype, size)
        for path in files_of(folder)
        for name, dtype, begin, size in read_header(path)[1]
    }


def _read_at(where: tuple[Any, ...], size: int) -> bytes:
    with where[0].open("rb") as file:
        file.seek(where[1])
        return file.read(where[2] if len(where) > 2 else size)


def peers() -> Iterator[type[Peer]]:
    """Yields every peer, in the order of the tables."""
    yield from (BitX, BitX1, TensorStore, Xet, Zstd, PatchFrom, Restic, Borg, GitLfs, Dvc, Peer)
