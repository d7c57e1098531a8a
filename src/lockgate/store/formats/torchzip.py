"""The tensors of a PyTorch checkpoint (`torch.save` since 1.6: a zip file, nothing compressed).

Layout: "Serialization semantics" of the PyTorch notes, and `torch/serialization.py`. The archive
holds `<root>/data.pkl`, `<root>/byteorder` and the storages as `<root>/data/<key>`. The pickle
names each storage by `("storage", class, key, device, values)` and makes tensors of them by
`torch._utils._rebuild_tensor_v2` and its kin. The pickle comes from a stranger: `pickles.py` reads
it, without executing anything. What is odd in any way is no error but bytes like any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import BinaryIO

from lockgate.store.formats.pickles import Bag, Global, Persistent, read_pickle
from lockgate.store.formats.spans import TensorSpan, without_clashes
from lockgate.store.formats.zipdir import Directory, Extent, check_apart, extent, read_directory

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
_MAX_PICKLE = 64 * 1024 * 1024
_MAX_DIMENSIONS = 64
_MAX_DEPTH = 64
_MAX_NAME = 1024
_REBUILD = "torch._utils._rebuild_"

_TYPES = {  # what PyTorch calls it → dtype, bytes of a value
    "Double": ("F64", 8), "Float": ("F32", 4), "Half": ("F16", 2), "BFloat16": ("BF16", 2),
    "Long": ("I64", 8), "Int": ("I32", 4), "Short": ("I16", 2), "Char": ("I8", 1),
    "Byte": ("U8", 1), "Bool": ("BOOL", 1), "ComplexFloat": ("C64", 8),
    "ComplexDouble": ("C128", 16), "QInt8": ("I8", 1), "QUInt8": ("U8", 1), "QInt32": ("I32", 4),
    "Untyped": ("U8", 1), "uint16": ("U16", 2), "uint32": ("U32", 4), "uint64": ("U64", 8),
    "float8_e4m3fn": ("F8_E4M3", 1), "float8_e4m3fnuz": ("F8_E4M3FNUZ", 1),
    "float8_e5m2": ("F8_E5M2", 1), "float8_e5m2fnuz": ("F8_E5M2FNUZ", 1),
    "float8_e8m0fnu": ("F8_E8M0", 1),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Storage:
    """A storage as the pickle has it: member `data/<key>`, `count` values of `item` bytes."""

    key: str
    dtype: str
    item: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Label:
    """What a storage is called: its first tensor that fills it, or else its first tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    whole: bool


def tensors(source: BinaryIO, size: int) -> tuple[TensorSpan, ...]:
    """Returns the storages of the checkpoint in the order of their bytes; () when it is odd."""
    try:
        return _tensors(source, size)
    except ValueError:
        return ()


def _tensors(source: BinaryIO, size: int) -> tuple[TensorSpan, ...]:
    directory = read_directory(source, size)
    pickles = [name for name in directory.members if name.count(b"/") == 1]
    (described,) = [name for name in pickles if name.endswith(b"/data.pkl")]
    root = described.removesuffix(b"data.pkl")
    where = _place(source, directory, described)
    order = root + b"byteorder"
    if order in directory.members and _bytes(source, _place(source, directory, order)) != b"little":
        raise ValueError("its numbers are not little endian")
    built, outside = read_pickle(_bytes(source, where))
    storages = _storages(outside)
    labels = _labels(built, storages)
    places = {key: _place(source, directory, root + b"data/" + key.encode()) for key in storages}
    check_apart([where, *places.values()])
    spans = (_span(storages[key], labels.get(key), place) for key, place in places.items())
    return without_clashes(spans, size)


def _place(source: BinaryIO, directory: Directory, name: bytes) -> Extent:
    if name not in directory.members:
        raise ValueError("a member is missing")
    return extent(source, directory.members[name], directory)


def _bytes(source: BinaryIO, place: Extent) -> bytes:
    if place.end - place.begin > _MAX_PICKLE:
        raise ValueError("its pickle is too long")
    source.seek(place.begin)
    return source.read(place.end - place.begin)


def _storages(outside: Iterable[Persistent]) -> dict[str, _Storage]:
    """Returns the storages by key; raises ValueError for an unknown type or two descriptions."""
    found: dict[str, _Storage] = {}
    for one in outside:
        storage = _storage(one)
        if found.setdefault(storage.key, storage) != storage:
            raise ValueError("a storage is described in two ways")
    return found


def _storage(one: Persistent) -> _Storage:
    match one.what:
        case ("storage", Global(name=name), str(key), _, int(count), *_) if 0 <= count < 2**63:
            module, _, kind = name.rpartition(".")
        case _:
            raise ValueError("the pickle names something that is no storage")
    kind = kind.removesuffix("Storage")
    if module not in ("torch", "torch.storage") or kind not in _TYPES:
        raise ValueError("a storage is of an unknown type")
    return _Storage(key=key, dtype=_TYPES[kind][0], item=_TYPES[kind][1], count=count)


def _labels(built: object, storages: Mapping[str, _Storage]) -> dict[str, _Label]:
    labels: dict[str, _Label] = {}
    for name, bag in _tensor_bags(built):
        storage = storages[_storage(_first(bag)).key]
        label = _label(name, bag, storage)
        known = labels.get(storage.key)
        if known is None or (label.whole and not known.whole):
            labels[storage.key] = label
    return labels


def _first(bag: Bag) -> Persistent:
    first = bag.inside[0][1]
    return first if isinstance(first, Persistent) else Persistent(what=None)


def _label(name: str, bag: Bag, storage: _Storage) -> _Label:
    """Returns the label of a tensor: `_rebuild_tensor_v2(storage, offset, size, stride, …)`."""
    match [value for _, value in bag.inside[:7]]:
        case [_, int(offset), size, stride, *rest]:
            shape, steps = _sizes(size), _sizes(stride)
        case _:
            raise ValueError("a tensor is not described by its storage, offset, size and stride")
    dtype, item = storage.dtype, storage.item
    if bag.name == f"{_REBUILD}tensor_v3":
        kind = rest[2].name if len(rest) > 2 and isinstance(rest[2], Global) else ""
        dtype, item = _TYPES.get(kind.removeprefix("torch."), ("", 0))
    full = prod(shape) * item == storage.count * storage.item and item > 0
    whole = full and offset == 0 and _by_rows(shape, steps)
    return _Label(name=name, dtype=dtype, shape=shape, whole=whole)


def _sizes(value: object) -> tuple[int, ...]:
    """Returns a tuple of lengths, also from `torch.Size(…)`; raises ValueError for no such."""
    if isinstance(value, Bag) and value.name == "torch.Size" and value.inside:
        value = value.inside[0][1]
    match value:
        case tuple(lengths) if len(lengths) <= _MAX_DIMENSIONS:
            naturals = tuple(n for n in lengths if isinstance(n, int) and 0 <= n < 2**63)
        case _:
            raise ValueError("a tensor has no proper size and stride")
    if len(naturals) < len(lengths):
        raise ValueError("a tensor has a length that can't be")
    return naturals


def _by_rows(shape: tuple[int, ...], steps: tuple[int, ...]) -> bool:
    if len(shape) != len(steps):
        return False
    step = 1
    for length, found in zip(reversed(shape), reversed(steps), strict=True):
        if length != 1 and found != step:
            return False
        step *= length
    return True


def _tensor_bags(root: object) -> Iterator[tuple[str, Bag]]:
    """Yields every tensor below `root` once, with the labels on the way to it joined by dots."""
    seen: set[int] = set()
    path: list[tuple[str, Iterator[tuple[str, object]]]] = [("", iter([("", root)]))]
    while path:
        prefix, rest = path[-1]
        for label, value in rest:
            name = ".".join(part for part in (prefix, label) if part)
            if not isinstance(value, Bag | tuple) or id(value) in seen or len(name) > _MAX_NAME:
                continue
            seen.add(id(value))
            if isinstance(value, Bag) and _is_tensor(value):
                yield name, value
            elif len(path) < _MAX_DEPTH:
                path.append((name, _children(value)))
                break
        else:
            path.pop()


def _is_tensor(bag: Bag) -> bool:
    called = bag.name.startswith(_REBUILD) and len(bag.inside) > 0
    return called and isinstance(bag.inside[0][1], Persistent)


def _children(value: Bag | tuple[object, ...]) -> Iterator[tuple[str, object]]:
    if isinstance(value, Bag):
        return iter(value.inside)
    return ((str(place), item) for place, item in enumerate(value))


def _span(storage: _Storage, label: _Label | None, place: Extent) -> TensorSpan:
    if place.end - place.begin != storage.count * storage.item:
        raise ValueError("a storage has another size than the pickle says")
    whole = label is not None and label.whole
    return TensorSpan(
        name=label.name if label and label.name else f"storage/{storage.key}",
        dtype=label.dtype if label and whole else storage.dtype,
        shape=label.shape if label and whole else (storage.count,),
        begin=place.begin,
        end=place.end,
    )
