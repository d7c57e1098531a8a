"""Small writers of GGUF, ONNX and PyTorch files, so that a test can write what no library would."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Tensor = tuple[str, Sequence[int], int, int]  # name, shape innermost first, type, offset


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def array(kind: int, values: Sequence[bytes], count: int | None = None) -> bytes:
    """Returns a GGUF array's bytes; its type number is 9."""
    return struct.pack("<IQ", kind, len(values) if count is None else count) + b"".join(values)


def gguf(
    tensors: Iterable[Tensor] = (),
    data: bytes = b"",
    pairs: Iterable[tuple[str, int, bytes]] = (),
    *,
    version: int = 3,
    counts: tuple[int, int] | None = None,
    alignment: int = 32,
) -> bytes:
    tensors, pairs = list(tensors), list(pairs)
    out = b"GGUF" + struct.pack("<IQQ", version, *(counts or (len(tensors), len(pairs))))
    for key, kind, value in pairs:
        out += text(key) + struct.pack("<I", kind) + value
    for name, shape, kind, offset in tensors:
        out += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
    return out + bytes(-len(out) % alignment) + data


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | str | bytes) -> bytes:
    """Returns one protobuf field: a number as varint, a text or bytes with their length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def tensor_proto(
    name: str, shape: Sequence[int], kind: int, raw: bytes | None = None, **outside: str
) -> bytes:
    """Returns a TensorProto; `outside` makes it one whose data are in another file."""
    out = b"".join(field(1, length) for length in shape) + field(2, kind) + field(8, name)
    if raw is not None:
        out += field(9, raw)
    for key, value in outside.items():
        out += field(13, field(1, key) + field(2, value))
    return out + (field(14, 1) if outside else b"")


def onnx(*initializers: bytes, nodes: Sequence[bytes] = (), more: bytes = b"") -> bytes:
    graph = b"".join(field(1, node) for node in nodes)
    graph += field(2, "graph") + b"".join(field(5, tensor) for tensor in initializers)
    return field(1, 10) + field(2, "a test") + field(7, graph) + more


class Storage:
    """Stands for a PyTorch storage in a pickle that `checkpoint` writes."""

    def __init__(self, kind: str, key: str, count: int, module: str = "torch") -> None:
        self.name = f"{module}\n{kind}"
        self.key = key
        self.count = count


def _opcodes(value: Any) -> bytes:
    """Returns the opcodes that build `value`; bytes are taken as opcodes."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, Storage):
        kind = f"c{value.name}\n".encode()
        return _opcodes(("storage", kind, value.key, "cpu", value.count)) + b"Q"
    if isinstance(value, tuple):
        return b"(" + b"".join(map(_opcodes, value)) + b"t"
    if isinstance(value, Mapping):
        items = (_opcodes(key) + _opcodes(item) for key, item in value.items())
        return b"}(" + b"".join(items) + b"u"
    return pickle.dumps(value, 2)[2:-1]


def rebuilt(
    storage: Any, shape: Sequence[int], stride: Sequence[int], offset: int = 0, *more: Any,
    how: str = "_rebuild_tensor_v2",
) -> bytes:  # fmt: skip
    """Returns the opcodes of a tensor over the storage."""
    rest = more or (False, {})
    arguments = (storage, offset, tuple(shape), tuple(stride), *rest)
    return f"ctorch._utils\n{how}\n".encode() + _opcodes(arguments) + b"R"


def pickled(value: Any) -> bytes:
    return b"\x80\x02" + _opcodes(value) + b"."


def checkpoint(
    data: bytes,
    storages: Mapping[str, bytes],
    *,
    root: str = "archive",
    byteorder: bytes | None = b"little",
    method: int = zipfile.ZIP_STORED,
) -> bytes:
    """Returns a zip file as `torch.save` lays it out."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.writestr(zipfile.ZipInfo(f"{root}/data.pkl"), data, method)
        if byteorder is not None:
            archive.writestr(zipfile.ZipInfo(f"{root}/byteorder"), byteorder, method)
        for key, content in storages.items():
            archive.writestr(zipfile.ZipInfo(f"{root}/data/{key}"), content, method)
    return out.getvalue()


def two_layers() -> bytes:
    """Returns a checkpoint of two tensors, `layer.weight` and `layer.bias`."""
    weight = rebuilt(Storage("FloatStorage", "0", 6), [2, 3], [3, 1])
    bias = rebuilt(Storage("HalfStorage", "1", 2), [2], [1])
    tensors = pickled({"layer.weight": weight, "layer.bias": bias})
    return checkpoint(tensors, {"0": bytes(24), "1": bytes(4)})
