"""Publish and restore: the same bytes come back, the same content is the same version."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from lockgate.core.clock import ManualClock
from lockgate.core.digests import Digest, digest_of
from lockgate.core.errors import (
    ConflictError,
    IntegrityError,
    LockgateError,
    NotFoundError,
    UsageError,
)
from lockgate.core.events import Edge
from lockgate.ledger.memory import MemoryLedger
from lockgate.registry import compare
from lockgate.registry.manifest import encode, parse
from lockgate.registry.publish import publish
from lockgate.registry.restore import restore, verify
from lockgate.registry.scan import FolderPlan
from lockgate.registry.service import Details, Published, Registry
from lockgate.store.api import Progress
from lockgate.store.blobs.local import LocalBlobs
from lockgate.store.blobs.memory import MemoryBlobs
from lockgate.store.packs import PackStore


class World:
    """A registry over a local store, and a folder to publish."""

    def __init__(self, tmp: Path) -> None:
        self.tmp = tmp
        self.folder = tmp / "model"
        self.folder.mkdir()
        self.ledger = MemoryLedger()
        self.objects = PackStore(LocalBlobs(tmp / "store"))
        self.registry = Registry(self.ledger, self.objects, ManualClock())

    def write(self, files: dict[str, bytes]) -> None:
        for name, data in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def publish(self, **options: object) -> Published:
        return publish(
            self.folder, "acme/chat", objects=self.objects, shelf=self.registry,
            details=Details(), actor="ann", **options,  # type: ignore[arg-type]
        )  # fmt: skip

    def state(self) -> tuple[list[str], int]:
        files = sorted(str(p) for p in (self.tmp / "store").rglob("*") if p.is_file())
        return files, self.ledger.head().position


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def tree(folder: Path) -> dict[str, tuple[bytes | None, bool]]:
    return {
        p.relative_to(folder).as_posix(): (
            p.read_bytes() if p.is_file() else None,
            p.is_file() and os.access(p, os.X_OK),
        )
        for p in sorted(folder.rglob("*"))
    }


def test_a_published_folder_comes_back(world: World) -> None:
    save_file({"w": np.arange(1000, dtype=np.float32)}, world.folder / "model.safetensors")
    world.write({"config.json": b"{}", "a/b/c.txt": b"deep", "empty.bin": b""})
    (world.folder / "hollow/inner").mkdir(parents=True)
    (world.folder / "run.sh").write_bytes(b"#!/bin/sh\n")
    (world.folder / "run.sh").chmod(0o755)
    published = world.publish()
    assert published.created
    assert published.version.number == 1
    assert published.version.published.tensors == 1
    restore(world.registry.manifest(published.version.digest), world.tmp / "out", world.objects)
    assert tree(world.tmp / "out") == tree(world.folder)


names = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=12
).filter(lambda name: name not in (".", ".."))
paths = st.lists(names, min_size=1, max_size=3).map("/".join)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(files=st.dictionaries(paths, st.binary(max_size=300), min_size=1, max_size=8))
def test_any_folder_comes_back_bit_for_bit(
    files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    world = World(tmp_path_factory.mktemp("world"))
    for name, data in files.items():
        try:
            world.write({name: data})
        except OSError:  # a name that is file and folder at once, or too long for the disk
            continue
    if not any(path.is_file() for path in world.folder.rglob("*")):
        return
    (world.folder / "x.safetensors").unlink(missing_ok=True)
    try:
        published = world.publish(exclude=["*.safetensors"])
    except UsageError as error:
        assert "no file" in error.message  # noqa: PT017
        return
    manifest = world.registry.manifest(published.version.digest)
    restore(manifest, world.tmp / "out", world.objects)
    kept = {k: v for k, v in tree(world.folder).items() if not k.endswith(".safetensors")}
    assert {k: v for k, v in tree(world.tmp / "out").items() if v[0] is not None} == {
        k: v for k, v in kept.items() if v[0] is not None
    }
    assert verify(manifest, world.objects) == []


def test_thousands_of_small_files_come_back(world: World) -> None:
    world.write({f"d{i % 7}/f{i}": str(i).encode() for i in range(3000)})
    version = world.publish().version
    restore(world.registry.manifest(version.digest), world.tmp / "out", world.objects)
    assert tree(world.tmp / "out") == tree(world.folder)


def test_progress_costs_the_same_for_every_file(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    size, asked = FolderPlan.size.fget, 0

    def counted(plan: FolderPlan) -> int:
        nonlocal asked
        asked += 1
        return size(plan)  # type: ignore[misc]

    monkeypatch.setattr(FolderPlan, "size", property(counted))
    world.write({f"f{i}": b"" for i in range(200)})
    told: list[int] = []
    world.publish(report=lambda progress: told.append(progress.done_files))
    assert told[-1] == 200
    assert asked < 10  # each goes through all files


def test_a_folder_without_an_end_is_refused(world: World) -> None:
    world.write({"/".join("d" * 100) + "/f": b"1"})
    with pytest.raises(UsageError, match="more than 100 folders deep"):
        world.publish()
    (world.folder / "d").rename(world.folder / "e")
    world.write({"/".join("d" * 99) + "/f": b"1"})
    world.publish(exclude=["e"])


def test_a_huge_header_comes_back(world: World) -> None:
    arrays = {f"layer.{i}.{'x' * 200}": np.full(1, i, np.float16) for i in range(20_000)}
    save_file(arrays, world.folder / "m.safetensors")
    version = world.publish().version
    assert version.published.tensors == 20_000
    restore(world.registry.manifest(version.digest), world.tmp / "out", world.objects)
    assert tree(world.tmp / "out") == tree(world.folder)


def test_a_file_of_many_pieces_comes_back(world: World) -> None:
    data = np.random.default_rng(1).integers(0, 255, 40_000_001, dtype=np.uint8)
    save_file({"a": data, "b": data[:17]}, world.folder / "m.safetensors")
    world.write({"other.bin": data.tobytes()})
    version = world.publish().version
    manifest = world.registry.manifest(version.digest)
    tensors, other = (len(a.pieces) for a in manifest.artifacts)
    assert tensors == 1 + 10 + 1  # the header, 4 MiB each, the small one
    assert other > 100  # cut by content
    restore(manifest, world.tmp / "out", world.objects)
    assert tree(world.tmp / "out") == tree(world.folder)


def test_the_same_content_is_the_same_version(world: World) -> None:
    world.write({"a": b"1", "b/c": b"2"})
    first = world.publish()
    shutil.copytree(world.folder, world.tmp / "copy")
    os.utime(world.tmp / "copy/a", (1, 1))
    again = publish(
        world.tmp / "copy", "acme/chat", objects=world.objects, shelf=world.registry,
        details=Details(labels={"x": "y"}), actor="bob",
    )  # fmt: skip
    assert not again.created
    assert again.version == first.version
    assert world.ledger.head().position == 1


def test_a_second_version_stores_only_what_changed(world: World) -> None:
    frozen = np.arange(100_000, dtype=np.float32)
    save_file({"frozen": frozen, "head": np.zeros(10, np.float32)}, world.folder / "m.safetensors")
    first = world.publish().version
    save_file({"frozen": frozen, "head": np.ones(10, np.float32)}, world.folder / "m.safetensors")
    second = world.publish().version
    assert first.published.bytes_new == first.published.bytes_total
    assert second.published.bytes_new < 1000
    change = compare.diff(
        world.registry.manifest(first.digest), world.registry.manifest(second.digest)
    )
    assert [(t.name, t.change) for t in change.tensors] == [("head", "changed")]
    assert change.tensors_same == 1
    assert change.bytes_new == second.published.bytes_new == 40


def test_versions_are_found_by_number_alias_and_digest(world: World) -> None:
    world.write({"a": b"1"})
    one = world.publish().version
    world.write({"a": b"2"})
    two = world.publish().version
    world.registry.move_alias("acme/chat", "champion", "v1", actor="ann")
    for name, expected in (("v1", one), ("2", two), ("champion", one), (two.digest, two)):
        assert world.registry.version("acme/chat", name) == expected
    world.registry.move_alias("acme/chat", "champion", "v2", actor="ann", reason="better")
    world.registry.move_alias("acme/chat", "champion", "v2", actor="ann")
    assert world.registry.version("acme/chat", "champion") == two
    assert world.ledger.head().position == 4
    with pytest.raises(NotFoundError, match="v3"):
        world.registry.version("acme/chat", "v3")
    with pytest.raises(NotFoundError, match="acme/other"):
        world.registry.version("acme/other", "v1")


def test_lineage_must_name_versions_that_exist(world: World) -> None:
    world.write({"a": b"1"})
    one = world.publish().version
    world.write({"a": b"2"})
    edge = Edge(relation="trained-from", model="acme/chat", digest=one.digest)
    two = publish(
        world.folder, "acme/chat", objects=world.objects, shelf=world.registry,
        details=Details(lineage=(edge,)), actor="ann",
    ).version  # fmt: skip
    assert two.published.lineage == (edge,)
    world.write({"a": b"3"})
    wrong = Edge(relation="trained-from", model="acme/chat", digest="blake3:" + "0" * 64)
    with pytest.raises(UsageError):
        publish(
            world.folder, "acme/chat", objects=world.objects, shelf=world.registry,
            details=Details(lineage=(wrong,)), actor="ann",
        )  # fmt: skip


def test_progress_knows_its_totals_from_the_first_report_on(world: World) -> None:
    world.write({f"f{i}": bytes([i]) * 1000 for i in range(10)})
    seen: list[Progress] = []
    world.publish(report=seen.append)
    assert {(p.total_bytes, p.total_files) for p in seen} == {(10_000, 10)}
    assert seen[0].done_bytes == 0
    assert (seen[-1].done_bytes, seen[-1].done_files, seen[-1].new_bytes) == (10_000, 10, 10_000)


def link_out(world: World) -> None:
    (world.tmp / "secret").write_text("s")
    (world.folder / "weights").symlink_to(world.tmp / "secret")


def link_up(world: World) -> None:
    (world.folder / "weights").symlink_to("../secret")


def link_loop(world: World) -> None:
    (world.folder / "weights").symlink_to("weights")


def folder_link(world: World) -> None:
    (world.folder / "d").mkdir()
    (world.folder / "weights").symlink_to("d", target_is_directory=True)


def pipe(world: World) -> None:
    os.mkfifo(world.folder / "weights")


def bad_name(world: World) -> None:
    (Path(os.fsdecode(os.fsencode(world.folder) + b"/weights\xff"))).write_text("x")


def corrupt(world: World) -> None:
    (world.folder / "weights.safetensors").write_bytes(b"\xff" * 100)


@pytest.mark.parametrize(
    "spoil", [link_out, link_up, link_loop, folder_link, pipe, bad_name, corrupt]
)
def test_a_bad_folder_is_refused_by_name_and_leaves_the_store_as_it_was(
    world: World, spoil: Callable[[World], None]
) -> None:
    world.write({"a": b"good"})
    before = world.state()
    spoil(world)
    with pytest.raises((UsageError, IntegrityError), match="weights"):
        world.publish()
    assert world.state() == before


def test_a_link_inside_the_folder_is_its_file(world: World) -> None:
    world.write({"a": b"good"})
    (world.folder / "b").symlink_to("a")
    version = world.publish().version
    restore(world.registry.manifest(version.digest), world.tmp / "out", world.objects)
    assert (world.tmp / "out/b").read_bytes() == b"good"
    assert not (world.tmp / "out/b").is_symlink()


def test_no_folder_and_an_empty_folder_are_refused(world: World) -> None:
    with pytest.raises(UsageError, match="no file"):
        world.publish()
    shutil.rmtree(world.folder)
    with pytest.raises(NotFoundError):
        world.publish()


def test_a_full_disk_leaves_the_store_as_it_was(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.write({"shared": b"kept by v1"})
    world.publish()
    before = world.state()
    world.write({f"f{i}": os.urandom(100) for i in range(20)})
    real, calls = os.fsync, [0]

    def fsync(handle: int) -> None:
        calls[0] += 1
        if calls[0] > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(UsageError, match="disk is full"):
        world.publish()
    monkeypatch.undo()
    assert world.state() == before
    assert world.publish().created


def test_a_really_full_disk_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(mount)], capture_output=True
    )
    if done.returncode:
        pytest.skip("no right to mount a small file system")
    try:
        world = World(tmp_path)
        world.objects = PackStore(LocalBlobs(mount / "store"))
        world.registry = Registry(world.ledger, world.objects, ManualClock())
        world.write({"a": b"x" * 1000})
        world.publish()
        before = sorted(mount.rglob("*"))
        world.write({f"f{i}": os.urandom(60_000) for i in range(20)})
        with pytest.raises(UsageError, match="disk is full"):
            world.publish()
        left = sorted(p for p in mount.rglob("*") if p.is_file())
        assert left == [p for p in before if p.is_file()]
        world.objects.close()
    finally:
        subprocess.run(["umount", "--lazy", str(mount)], check=True)


def test_a_file_that_changes_while_it_is_read_is_refused(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.write({"a": b"x" * 1000})
    before = world.state()

    def slowly(data: bytes | memoryview) -> Digest:
        (world.folder / "a").write_bytes(b"y" * 1000)
        os.utime(world.folder / "a", ns=(1, 1))
        return digest_of(data)

    monkeypatch.setattr("lockgate.registry.publish.digest_of", slowly)
    with pytest.raises(UsageError, match="a was changed"):
        world.publish()
    monkeypatch.undo()
    assert world.state() == before


def test_restore_never_leaves_half_a_folder(world: World) -> None:
    world.write({"a": b"first", "b": b"second"})
    version = world.publish().version
    manifest = world.registry.manifest(version.digest)
    (pack,) = (world.tmp / "store/packs").glob("*/*")
    pack.write_bytes(pack.read_bytes().replace(b"second", b"secomd"))
    with pytest.raises(IntegrityError, match=r"^b: "):
        restore(manifest, world.tmp / "out", world.objects)
    assert list((world.tmp / "store/damaged").iterdir())  # what is damaged is noted
    with pytest.raises(IntegrityError, match=r"^b: "):
        restore(manifest, world.tmp / "out", world.objects)
    assert [d.path for d in verify(manifest, world.objects)] == ["b"]
    assert sorted(p.name for p in world.tmp.iterdir()) == ["model", "store"]
    world.publish()  # the same content again heals it
    restore(manifest, world.tmp / "out", world.objects)
    with pytest.raises(ConflictError):
        restore(manifest, world.tmp / "out", world.objects)


EVIL = ["../x", "/etc/x", "a/../../x", "a//b", "", ".", "a/.", "x\0y", "n" * 256, "a/" * 2100 + "a"]


@pytest.mark.parametrize("path", EVIL)
def test_a_manifest_with_a_path_out_of_its_folder_is_refused(world: World, path: str) -> None:
    world.write({"a": b"good"})
    text = encode(world.registry.manifest(world.publish().version.digest))
    evil = text.replace(b'"path":"a"', b'"path":' + json.dumps(path, ensure_ascii=False).encode())
    before = world.state()
    with pytest.raises(IntegrityError):
        world.registry.commit("acme/chat", evil, Details(), actor="eve")
    assert world.state() == before


@pytest.mark.parametrize(
    ("old", "new"),
    [(b'"size":4', b'"size":5'), (b"manifest@2", b"manifest@3"), (b'{"art', b'{ "art'),
     (b'"pieces":["', b'"pieces":["z'), (b'"size":4', b'"size":-4'),
     (b'"pieces":[', b'"pieces":[[],')],
)  # fmt: skip
def test_a_manifest_that_lies_is_refused(world: World, old: bytes, new: bytes) -> None:
    world.write({"a": b"good"})
    text = encode(world.registry.manifest(world.publish().version.digest))
    with pytest.raises(IntegrityError):
        parse(text.replace(old, new, 1))


@given(st.binary(max_size=100))
def test_noise_is_no_manifest(text: bytes) -> None:
    with pytest.raises(LockgateError):
        parse(text)


def test_two_names_for_one_place_are_refused(world: World) -> None:
    world.write({"a": b"good", "b": b"good"})
    text = encode(world.registry.manifest(world.publish().version.digest))
    for twin in (b'"path":"a/b"', b'"path":"a"'):
        with pytest.raises(IntegrityError, match="stands for two things"):
            parse(text.replace(b'"path":"b"', twin))


def test_a_version_whose_bytes_are_not_here_is_refused(world: World) -> None:
    world.write({"a": b"good"})
    text = encode(world.registry.manifest(world.publish().version.digest))
    empty = Registry(MemoryLedger(), PackStore(MemoryBlobs()), ManualClock())
    with pytest.raises(IntegrityError, match="not in the store"):
        empty.commit("acme/chat", text, Details(), actor="eve")
    assert empty.models() == {}


KILLED = """
import os, sys
from pathlib import Path
from lockgate.core.clock import SystemClock
from lockgate.ledger.sqlite import SqliteLedger
from lockgate.registry.publish import publish
from lockgate.registry.scan import FolderPlan
from lockgate.registry.service import Details, Registry
from lockgate.store.blobs.local import LocalBlobs
from lockgate.store.packs import PackStore
home, stop = Path(sys.argv[1]), int(sys.argv[2])
count = 0
def audit(event, args):
    global count
    durable = event in ("os.rename", "os.mkdir", "os.remove", "sqlite3.connect") or (
        event == "open" and isinstance(args[1], str) and args[1] != "r" and "b" in args[1])
    count += durable
    if durable and count == stop:
        os.kill(os.getpid(), 9)
sys.addaudithook(audit)
objects = PackStore(LocalBlobs(home / "store"))
registry = Registry(SqliteLedger(home / "ledger.db"), objects, SystemClock())
done = publish(
    home / "model", "acme/chat", objects=objects, shelf=registry, details=Details(), actor="k")
print(done.version.number, count)
"""


def test_a_publish_killed_at_every_durable_step_goes_on(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.write({"a": b"one", "b": b"two", "c/d": b"three"})
    stop = killed = 0
    while True:
        stop += 1
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(world.tmp), str(stop)],
            capture_output=True,
            text=True,
        )
        objects = PackStore(LocalBlobs(world.tmp / "store"))
        for digest in objects.digests():
            objects.get(digest)  # whatever has a name is whole
        if done.returncode == 0:
            break
        assert done.returncode == -9, done.stderr
        killed += 1
        if stop % 3 == 0:  # start afresh now and then, or go on from the wreck
            shutil.rmtree(world.tmp / "store")
            (world.tmp / "ledger.db").unlink(missing_ok=True)
    assert killed >= 5
    assert done.stdout.startswith("1 ")
