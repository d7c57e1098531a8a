"""Which bytes of a file are tensors: the format is told by magic number, or by suffix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import BinaryIO

from lockgate.store.formats import gguf, onnx, safetensors, torchzip, zipdir
from lockgate.store.formats.spans import TensorSpan, without_clashes

__all__ = ["TensorSpan", "named_elsewhere", "tensors_of"]

Siblings = Mapping[str, Sequence[TensorSpan]]
"""Path of a file → the tensors that other files of its folder say it holds."""


def tensors_of(
    source: BinaryIO, size: int, path: str, siblings: Siblings
) -> tuple[TensorSpan, ...]:
    """Returns the tensors in a file of `size` bytes: in order, in bounds, without overlaps.

    `path` is its path in its folder; `siblings` is what `named_elsewhere` found in the other
    files, and counts only for a file of no format of its own. Bytes in no span are ordinary.
    Raises IntegrityError, naming the file, for a corrupt safetensors or GGUF file.
    """
    source.seek(0)
    prefix = source.read(8)
    if path.endswith(".safetensors"):
        return safetensors.tensors(source, size, path)
    if gguf.is_gguf(prefix):
        return gguf.tensors(source, size, path)
    if prefix.startswith(zipdir.MAGIC) and path.endswith(torchzip.SUFFIXES):
        return torchzip.tensors(source, size)
    if path.endswith(".onnx"):
        return onnx.tensors(source, size, path).own
    return without_clashes(siblings.get(path, ()), size)


def named_elsewhere(source: BinaryIO, size: int, path: str) -> Siblings:
    """Returns what the file says of tensors in other files of its folder, by their paths.

    Only ONNX files say such things; nothing that they say is checked against those files yet.
    Join the answers of a folder's files, then hand them to `tensors_of`.
    """
    return onnx.tensors(source, size, path).elsewhere if path.endswith(".onnx") else {}
