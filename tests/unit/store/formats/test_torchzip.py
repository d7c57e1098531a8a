"""PyTorch's checkpoints: found without executing the pickle, whatever the archive says."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockgate.store.formats.api import TensorSpan, tensors_of
from lockgate.store.formats.pickles import Bag, Global, read_pickle

from .writers import Storage, checkpoint, pickled, rebuilt, two_layers


def read(data: bytes, path: str = "m.pt") -> tuple[TensorSpan, ...]:
    return tensors_of(io.BytesIO(data), len(data), path, {})


def shapes(data: bytes) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {span.name: (span.dtype, span.shape) for span in read(data)}


def one(tensor: Any, content: bytes = bytes(24)) -> bytes:
    return checkpoint(pickled({"w": tensor}), {"0": content})


FLOATS = Storage("FloatStorage", "0", 6)


@pytest.mark.parametrize("suffix", ["pt", "pth", "bin", "ckpt"])
def test_tensors_are_found_where_their_bytes_are(suffix: str) -> None:
    content = bytes(range(24))
    data = one(rebuilt(FLOATS, [2, 3], [3, 1]), content)
    (span,) = read(data, f"m.{suffix}")
    assert (span.name, span.dtype, span.shape) == ("w", "F32", (2, 3))
    assert data[span.begin : span.end] == content


def test_names_are_the_way_to_the_tensor() -> None:
    inner = {
        "a": rebuilt(FLOATS, [6], [1]),
        "b": (rebuilt(Storage("IntStorage", "1", 2), [2], [1]),),
    }
    data = checkpoint(pickled({"model": inner, "epoch": 3}), {"0": bytes(24), "1": bytes(8)})
    assert shapes(data) == {"model.a": ("F32", (6,)), "model.b.0": ("I32", (2,))}


def test_the_shape_is_the_tensors_if_it_is_all_of_the_storage_by_rows() -> None:
    assert shapes(one(rebuilt(FLOATS, [3, 2], [1, 3]))) == {"w": ("F32", (6,))}
    assert shapes(one(rebuilt(FLOATS, [2], [1], 2))) == {"w": ("F32", (6,))}
    assert shapes(one(rebuilt(FLOATS, [1, 6], [99, 1]))) == {"w": ("F32", (1, 6))}
    assert shapes(one((b"ctorch\nSize\n((K\x06ttR", FLOATS))) == {"storage/0": ("F32", (6,))}


def test_of_two_tensors_the_one_that_fills_the_storage_names_it() -> None:
    tensors = {"part": rebuilt(FLOATS, [2], [1]), "all": rebuilt(FLOATS, [6], [1])}
    assert shapes(checkpoint(pickled(tensors), {"0": bytes(24)})) == {"all": ("F32", (6,))}


def test_the_type_of_an_untyped_storage_is_the_tensors() -> None:
    storage = Storage("UntypedStorage", "0", 24, module="torch.storage")
    more = (False, {}, b"ctorch\nfloat8_e4m3fn\n")
    whole = rebuilt(storage, [24], [1], 0, *more, how="_rebuild_tensor_v3")
    assert shapes(one(whole)) == {"w": ("F8_E4M3", (24,))}
    part = rebuilt(storage, [2], [1], 0, *more, how="_rebuild_tensor_v3")
    assert shapes(one(part)) == {"w": ("U8", (24,))}


def test_parameters_and_strangers_objects_are_looked_into() -> None:
    tensor = rebuilt(FLOATS, [6], [1])
    parameter = b"ctorch._utils\n_rebuild_parameter\n(" + tensor + b"\x88}tR"
    stranger = b"c__main__\nModel\n)\x81}(X\x06\0\0\0weight" + parameter + b"ub"
    assert shapes(one(stranger)) == {"w.weight": ("F32", (6,))}


def test_nothing_is_executed(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "executed",)

    tensor = rebuilt(FLOATS, [6], [1])
    data = checkpoint(pickled({"e": Evil(), "w": tensor}), {"0": bytes(24)})
    assert shapes(data) == {"w": ("F32", (6,))}
    assert not (tmp_path / "executed").exists()
    built, _ = read_pickle(b"cos\nsystem\nX\x02\0\0\0ls\x85R.")
    assert isinstance(built, Bag)
    assert (built.name, built.inside) == ("os.system", [("", "ls")])


def test_a_storage_without_bytes_is_no_span() -> None:
    storage = Storage("FloatStorage", "0", 0)
    assert read(one(rebuilt(storage, [0], [1]), b"")) == ()


def test_an_older_archive_without_byteorder_is_read() -> None:
    data = pickled({"w": rebuilt(FLOATS, [6], [1])})
    assert len(read(checkpoint(data, {"0": bytes(24)}, byteorder=None))) == 1
    assert read(checkpoint(data, {"0": bytes(24)}, byteorder=b"big")) == ()


SOUND = pickled({"w": rebuilt(FLOATS, [6], [1])})
CONTENT = {"0": bytes(24)}


def with_pickle(data: bytes) -> bytes:
    return checkpoint(data, CONTENT)


ODD = {
    "another suffix would do, an empty zip does not": b"PK\x03\x04" + bytes(30),
    "compressed": checkpoint(SOUND, CONTENT, method=zipfile.ZIP_DEFLATED),
    "a storage is missing": checkpoint(SOUND, {"1": bytes(24)}),
    "a storage is too short": checkpoint(SOUND, {"0": bytes(20)}),
    "a storage is too long": checkpoint(SOUND, {"0": bytes(28)}),
    "a root of two folders": checkpoint(SOUND, CONTENT, root="a/b"),
    "bytes after the archive": two_layers() + b"x",
    "bytes before the archive": b"PK\x03\x04" + two_layers(),
    "cut": two_layers()[:-1],
    "a key that leads away": checkpoint(SOUND.replace(b"\1\0\0\0000", b"\2\0\0\0.."), CONTENT),
    "two descriptions of a storage": with_pickle(
        pickled((rebuilt(FLOATS, [6], [1]), rebuilt(Storage("IntStorage", "0", 6), [6], [1])))
    ),
    "an unknown storage": with_pickle(pickled(Storage("WeirdStorage", "0", 6))),
    "a storage of another module": with_pickle(pickled(Storage("FloatStorage", "0", 6, "evil"))),
    "a negative number of values": with_pickle(pickled(Storage("FloatStorage", "0", -6))),
    "a huge number of values": with_pickle(pickled(Storage("FloatStorage", "0", 2**64))),
    "a persistent id that is no tuple": with_pickle(b"\x80\x02K\x01Q."),
    "a size that is no tuple": with_pickle(SOUND.replace(b"(K\6t", b"K\6")),
    "a negative length": one(rebuilt(FLOATS, [-6], [1])),
    "too many dimensions": one(rebuilt(FLOATS, [1] * 65, [1] * 65)),
    "no arguments": one(b"ctorch._utils\n_rebuild_tensor_v2\n(" + pickled(FLOATS)[2:-1] + b"tR"),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_what_is_odd_is_an_ordinary_file(name: str) -> None:
    assert read(ODD[name]) == ()


def test_a_file_of_another_name_is_not_looked_into() -> None:
    assert read(two_layers(), "m.zip") == ()
    assert len(read(two_layers())) == 2


PICKLES = {
    "empty": b"",
    "no end": b"\x80\x02N",
    "stop with nothing": b".",
    "pop with nothing": b"0.",
    "a mark that is not there": b"t.",
    "a tuple over a mark": b"K\1(\x85.",
    "a key without value": b"}(K\1u.",
    "nothing to set": b"(K\1K\2u.",
    "an unknown memory": b"h\7.",
    "nothing to remember": b"q\0.",
    "a text that ends too early": b"X\xff\xff\xff\xff.",
    "a text not in UTF-8": b"X\1\0\0\0\xff.",
    "bytes that end too early": b"\x8e" + b"\xff" * 8 + b".",
    "a class without end": b"cos\nsystem",
    "an opcode of protocol 0": b"I1\n.",
    "an unknown opcode": b"\xff.",
    "an extension": b"\x82\1.",
    "a call of nothing": b"R.",
    "steps without end": b"N0" * 1_600_000 + b"N.",
}


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_that_is_odd_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"pickle|opcode|decode"):
        read_pickle(PICKLES[name])
    assert read(with_pickle(PICKLES[name])) == ()


def test_a_bomb_of_references_costs_nothing() -> None:
    doubled = b"".join(b"h\0h\0\x86q\0" for _ in range(2000))
    data = checkpoint(b"\x80\2)q\0" + doubled + b".", {})
    assert read(data) == ()
    circle = b"\x80\2]q\0h\0a}q\1(X\1\0\0\0ah\0X\1\0\0\0bh\1u."
    assert read(checkpoint(circle, {})) == ()


def test_a_long_way_to_a_tensor_gives_it_no_name() -> None:
    tensor: Any = rebuilt(FLOATS, [6], [1])
    for _ in range(100):
        tensor = {"n": tensor}
    assert shapes(one(tensor)) == {"storage/0": ("F32", (6,))}


numbers = st.integers(-(2**127), 2**127 - 1)
texts = st.text(max_size=200)
json = st.recursive(
    st.none() | st.booleans() | numbers | texts | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(texts | numbers, inner),
    max_leaves=20,
)


@given(value=json, protocol=st.integers(2, 5))
def test_what_pickle_writes_is_read(value: Any, protocol: int) -> None:
    built, outside = read_pickle(pickle.dumps(value, protocol))
    assert _same(built, value)
    assert not outside


def test_what_is_too_long_for_a_name_or_a_size_is_not_kept() -> None:
    for value in (2**127, "n" * 1025):
        assert read_pickle(pickle.dumps(value, 2)) == (None, ())


def _same(built: object, value: object) -> bool:
    match value:
        case dict() if isinstance(built, Bag):
            pairs = zip(built.inside, value.items(), strict=True)
            return all(label == str(key) and _same(b, v) for (label, b), (key, v) in pairs)
        case list() if isinstance(built, Bag):
            return all(_same(b, v) for (_, b), v in zip(built.inside, value, strict=True))
        case bytes():
            return built is None or isinstance(built, Bag)
        case _:
            return built == value


@given(noise=st.binary(max_size=40), at=st.integers(0, 200))
def test_noise_in_a_pickle_never_crashes(noise: bytes, at: int) -> None:
    data = bytearray(SOUND)
    data[at : at + len(noise)] = noise
    read(with_pickle(bytes(data)))


@given(noise=st.binary(max_size=8), at=st.integers(-300, -1))
def test_noise_in_the_directory_never_crashes(noise: bytes, at: int) -> None:
    data = bytearray(two_layers())
    data[at : at + len(noise)] = noise
    end = 0
    for span in read(bytes(data)):
        assert end <= span.begin < span.end <= len(data)
        end = span.end


def central(data: bytes, name: bytes) -> int:
    """Returns where the entry of `name` begins in the directory."""
    return data.rindex(name) - 46


def patched(at: int, form: str, value: int, name: bytes = b"archive/data/0") -> bytes:
    data = bytearray(two_layers())
    struct.pack_into(form, data, central(bytes(data), name) + at, value)
    return bytes(data)


def counting(members: int) -> bytes:
    data = two_layers()
    return data[:-14] + struct.pack("<2H", members, members) + data[-10:]


DIRECTORIES = {
    "another signature": patched(0, "<I", 0),
    "encrypted": patched(8, "<H", 1),
    "compressed": patched(10, "<H", 8),
    "two sizes": patched(20, "<I", 7),
    "a size beyond the end": patched(24, "<I", 2**31),
    "a name beyond the end": patched(28, "<H", 0xFFFF),
    "a header beyond the end": patched(42, "<I", 2**31),
    "a zip64 size that is missing": patched(24, "<I", 2**32 - 1),
    "the header of another member": patched(42, "<I", 0),
    "two members of one name": two_layers().replace(b"data/1", b"data/0"),
    "an end without directory": two_layers()[-22:],
    "more members than bytes": counting(999),
    "a member less than the directory has": counting(3),
    "on another disk": two_layers()[:-18] + b"\1" + two_layers()[-17:],
    "a zip64 locator to nowhere": (
        two_layers()[:-22] + b"PK\6\7" + struct.pack("<LQL", 0, 2**60, 1) + two_layers()[-22:]
    ),
    "a zip64 locator to no directory": (
        two_layers()[:-22] + b"PK\6\7" + struct.pack("<LQL", 0, 0, 1) + two_layers()[-22:]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DIRECTORIES)
def test_a_crafted_directory_makes_it_an_ordinary_file(name: str) -> None:
    assert read(DIRECTORIES[name]) == ()


def test_members_that_overlap_make_it_an_ordinary_file() -> None:
    content = zipped_header(b"archive/data/1", 24) + bytes(24)
    outer, inner = Storage("ByteStorage", "0", len(content)), Storage("FloatStorage", "1", 6)
    data = bytearray(checkpoint(pickled((outer, inner)), {"0": content, "1": bytes(24)}))
    assert len(read(bytes(data))) == 2
    inside = data.index(content)
    struct.pack_into("<I", data, central(bytes(data), b"archive/data/1") + 42, inside)
    assert read(bytes(data)) == ()


def zipped_header(name: bytes, size: int) -> bytes:
    return struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 0, 0, size, size, len(name), 0) + name


def test_zip64_archives_and_data_descriptors_are_read() -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    out = Pipe()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in (("a/data.pkl", SOUND), ("a/data/0", bytes(24))):
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(content)
    plain = out.getvalue()
    assert shapes(plain) == {"w": ("F32", (6,))}
    assert shapes(as_zip64(plain)) == {"w": ("F32", (6,))}


def as_zip64(data: bytes) -> bytes:
    """Returns the archive with a zip64 end, as PyTorch writes one."""
    _, _, _, _, count, length, begin, _ = struct.unpack("<4s4H2LH", data[-22:])
    end = len(data) - 22
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, length, begin)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, end, 1)
    last = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 2**32 - 1, 2**32 - 1, 0)
    return data[:end] + record + locator + last


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_the_real_library_writes(tmp_path: Path, protocol: int) -> None:
    torch: Any = pytest.importorskip("torch")
    kinds = {
        "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64,
        "I64": torch.int64, "U8": torch.uint8, "BOOL": torch.bool, "U16": torch.uint16,
        "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64,
    }  # fmt: skip
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    tensors = {name: torch.ones(2, 3).to(kind) for name, kind in kinds.items()}
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "t": tensors}
    torch.save(state, tmp_path / "m.pt", pickle_protocol=protocol)
    data = (tmp_path / "m.pt").read_bytes()
    found = {span.name: span for span in read(data)}
    for name, tensor in tensors.items():
        span = found[f"t.{name}"]
        assert (span.dtype, span.shape) == (name, (2, 3))
        assert data[span.begin : span.end] == bytes(tensor.untyped_storage().tolist())
    assert found["model.0.weight"].shape == (3, 4)
    assert found["optimizer.state.0.exp_avg"].shape == (3, 4)
    torch.save(model, tmp_path / "whole.pt")
    names = {span.name for span in read((tmp_path / "whole.pt").read_bytes())}
    assert "_modules.0._parameters.weight" in names


def test_the_words_of_a_pickle() -> None:
    built, outside = read_pickle(b"\x80\4(\x8c\2os\x8c\4exit\x93K\1\x8a\1\xffG" + bytes(8) + b"t.")
    assert built == (Global(name="os.exit"), 1, -1, None)
    assert outside == ()
