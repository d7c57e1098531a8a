"""The contract of the port Blobs, run on every adapter, wrappers included."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lockgate.core.errors import (
    DeniedError,
    IntegrityError,
    NotFoundError,
    TemporaryError,
    UsageError,
)
from lockgate.store.blobs.api import BackendOptions, Blobs, find
from lockgate.store.blobs.cached import CachedBlobs
from lockgate.store.blobs.encrypted import EncryptedBlobs
from lockgate.store.blobs.keys import KeyRing, new_key
from lockgate.store.blobs.limited import RateLimitedBlobs
from lockgate.store.blobs.local import LocalBlobs
from lockgate.store.blobs.memory import MemoryBlobs
from lockgate.store.blobs.open import open_blobs
from lockgate.store.blobs.retry import RetryBlobs
from lockgate.store.blobs.s3 import PART_BYTES, S3Blobs, probe

MIB = 1024 * 1024


def ring() -> KeyRing:
    return KeyRing([new_key()])


def options(s3: dict[str, str]) -> BackendOptions:
    return BackendOptions(
        endpoint=s3["endpoint"],
        region=s3["region"],
        access_key=s3["access_key"],
        secret_key=s3["secret_key"],
    )


def fresh(s3: dict[str, str]) -> str:
    """Returns the address of a prefix that nobody has used."""
    return f"s3://{s3['bucket']}/{uuid.uuid4().hex}"


MAKERS: dict[str, Callable[[Path], Blobs]] = {
    "memory": lambda folder: MemoryBlobs(),
    "local": lambda folder: LocalBlobs(folder / "store"),
    "encrypted": lambda folder: EncryptedBlobs(MemoryBlobs(), ring()),
    "encrypted-local": lambda folder: EncryptedBlobs(LocalBlobs(folder / "store"), ring()),
    "cached": lambda folder: CachedBlobs(MemoryBlobs(), folder / "cache", 64 * MIB),
    "retry": lambda folder: RetryBlobs(MemoryBlobs()),
    "limited": lambda folder: RateLimitedBlobs(MemoryBlobs(), 1e12),
}
REMOTE = [
    pytest.param(name, marks=pytest.mark.s3) for name in ("s3", "s3-encrypted-cached-retried")
]


@pytest.fixture(params=[*MAKERS, *REMOTE])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Blobs]:
    if request.param in MAKERS:
        made = MAKERS[request.param](tmp_path)
    else:
        made = remote(request.getfixturevalue("s3"), tmp_path, bare=request.param == "s3")
    yield made
    made.remove(blob.name for blob in list(made.list()))
    made.close()


def remote(s3: dict[str, str], folder: Path, *, bare: bool) -> Blobs:
    inner = S3Blobs(fresh(s3), options(s3))
    if bare:
        return inner
    return EncryptedBlobs(CachedBlobs(RetryBlobs(inner), folder / "cache", 64 * MIB), ring())


def names(blobs: Blobs, prefix: str = "") -> list[str]:
    return [blob.name for blob in blobs.list(prefix)]


def test_what_was_written_comes_back(blobs: Blobs) -> None:
    contents = [b"", b"a", b"\0" * 1000, os.urandom(300_000)]
    for number, content in enumerate(contents):
        assert blobs.write(f"blob/{number}", [content]) == len(content)
    for number, content in enumerate(contents):
        assert blobs.read(f"blob/{number}") == content


def test_parts_are_one_blob(blobs: Blobs) -> None:
    parts = [b"one", memoryview(b"-two-"), b"", memoryview(bytearray(b"three"))]
    assert blobs.write("list", parts) == 13
    assert blobs.write("generator", (part for part in parts)) == 13
    assert blobs.write("nothing", iter(())) == 0
    assert blobs.read("list") == blobs.read("generator") == b"one-two-three"
    assert blobs.read("nothing") == b""


def test_a_blob_says_its_size_and_age(blobs: Blobs) -> None:
    before = time.time()
    blobs.write("a", [b"12345"])
    (blob,) = blobs.list()
    assert (blob.name, blob.size) == ("a", 5)
    assert before - 60 < blob.modified < time.time() + 60
    assert find(blobs, "a") == blob
    with pytest.raises(NotFoundError):
        find(blobs, "b")


def test_ranges(blobs: Blobs) -> None:
    content = os.urandom(700_000)
    blobs.write("a", [content])
    cuts = [(0, 1), (5, 0), (0, 700_000), (262_143, 2), (262_144, 262_144), (699_999, 1)]
    cuts += [(700_000, 0), (1, 3), (1, 3), (600_000, 100_000), (300_000, 5)]
    assert blobs.read_ranges("a", cuts) == [content[b : b + n] for b, n in cuts]
    for begin, size in cuts:
        assert blobs.read("a", begin, size) == content[begin : begin + size]
    assert blobs.read("a", 699_990) == content[-10:]
    assert blobs.read("a", 700_000) == b""
    assert blobs.read_ranges("a", []) == []


def test_a_range_past_the_end_is_damage_not_fewer_bytes(blobs: Blobs) -> None:
    blobs.write("a", [b"0123456789"])
    for begin, size in [(0, 11), (10, 1), (11, 0), (5, 6), (50, 5), (20 * MIB, 20 * MIB)]:
        with pytest.raises(IntegrityError, match="ends before"):
            blobs.read("a", begin, size)
        with pytest.raises(IntegrityError, match="ends before"):
            blobs.read_ranges("a", [(0, 2), (begin, size), (8, 2)])
    with pytest.raises(IntegrityError, match="ends before"):
        blobs.read("a", 11)
    with pytest.raises(IntegrityError, match="ends before"):
        blobs.read("a", 0, 10**12)
    assert blobs.read("a") == b"0123456789"


def test_a_range_below_zero_is_refused(blobs: Blobs) -> None:
    blobs.write("a", [b"0123456789"])
    for begin, size in [(-1, 2), (2, -1)]:
        with pytest.raises(UsageError):
            blobs.read("a", begin, size)
        with pytest.raises(UsageError):
            blobs.read_ranges("a", [(begin, size)])


def test_what_is_not_there_is_not_found(blobs: Blobs) -> None:
    blobs.write("there/a", [b"x"])
    for name in ("nowhere", "there", "there/a/b", "there/b"):
        with pytest.raises(NotFoundError, match=name):
            blobs.read(name)
        with pytest.raises(NotFoundError, match=name):
            blobs.read(name, 1, 2)
        with pytest.raises(NotFoundError, match=name):
            blobs.read_ranges(name, [(0, 0), (0, 1)])


def test_a_blob_is_replaced_whole(blobs: Blobs) -> None:
    blobs.write("a", [b"first, and longer"])
    assert blobs.read("a", 0, 5) == b"first"
    blobs.write("a", [b"second"])
    assert blobs.read("a") == b"second"
    assert blobs.read("a", 0, 5) == b"secon"
    assert [blob.size for blob in blobs.list()] == [6]


def test_a_failed_write_changes_nothing(blobs: Blobs) -> None:
    def broken(count: int) -> Iterator[bytes]:
        for _ in range(count):
            yield bytes(PART_BYTES // 2)
        raise ZeroDivisionError

    blobs.write("old", [b"old"])
    for name in ("old", "new"):
        for count in (0, 1, 5):
            with pytest.raises(ZeroDivisionError):
                blobs.write(name, broken(count))
    assert blobs.read("old") == b"old"
    assert names(blobs) == ["old"]


def test_lists_by_name_and_prefix(blobs: Blobs) -> None:
    made = ["a", "a-b", "a.b", "a0", "b/a", "b/a-/x", "b/a.c", "b/a/x", "b/ab", "b-", "c/d/e/f"]
    made.remove("b/a")  # it is a folder here
    for name in reversed(made):
        blobs.write(name, [name.encode()])
    assert names(blobs) == sorted(made)
    for prefix in ("a", "a-", "b", "b/", "b/a", "b/a/", "b/a/x", "c/d/e", "z", "b/a/x/", "c/d/e/f"):
        assert names(blobs, prefix) == [name for name in sorted(made) if name.startswith(prefix)]
    assert names(blobs, "/") == names(blobs, "..") == names(blobs, "a//") == []


def test_lists_more_than_one_page(blobs: Blobs) -> None:
    made = [f"many/{number:05}" for number in range(1100)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: blobs.write(name, [b"x"]), made))
    assert names(blobs, "many/") == made
    blobs.remove(made[1:])
    assert names(blobs) == made[:1]


def test_remove_may_be_repeated(blobs: Blobs) -> None:
    blobs.write("a", [b"a"])
    blobs.write("b/c", [b"c"])
    assert blobs.read("a") == b"a"
    blobs.remove(iter(["a", "a", "never", "b", "b/c/d"]))
    blobs.remove([])
    assert names(blobs) == ["b/c"]
    with pytest.raises(NotFoundError):
        blobs.read("a")


HOSTILE = [
    "", "/", "/etc/passwd", "../a", "a/../b", "a//b", "a/", ".hidden", "a/.tmp/b", "A", "ä", "a b",
    "a\n", "a\0", "a\\b", "~", "@0-1", "a" * 201, "a?b=c", "%2e%2e", "..", "a/..",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("maker", MAKERS)
def test_a_hostile_name_is_refused(maker: str, name: str, tmp_path: Path) -> None:
    blobs = MAKERS[maker](tmp_path)
    for call in (
        lambda: blobs.write(name, [b"x"]),
        lambda: blobs.read(name),
        lambda: blobs.read_ranges(name, [(0, 1)]),
        lambda: blobs.remove([name]),
    ):
        with pytest.raises(UsageError, match="name of a blob"):
            call()
    assert names(blobs) == []
    blobs.close()


def test_the_longest_name_is_taken(blobs: Blobs) -> None:
    for name in ("a" * 200, "/".join(["a"] * 100), "0.._-"):
        blobs.write(name, [b"x"])
        assert blobs.read(name) == b"x"
        assert names(blobs, name) == [name]


def test_many_threads(blobs: Blobs) -> None:
    """Blobs are replaced while they are read: every read is one of the whole ones."""
    sizes = (1000, 3000, 300_000)

    def work(seed: int) -> None:
        for turn in range(6):
            name, own = f"shared/{turn % 3}", f"own/{seed}-{turn}"
            blobs.write(own, [bytes([seed]) * sizes[turn % 3]])
            blobs.write(name, [bytes([seed]) * sizes[seed % 3]])
            assert blobs.read(own) == bytes([seed]) * sizes[turn % 3]
            try:
                found = blobs.read(name)
            except TemporaryError:
                continue
            assert len(set(found)) == 1
            assert len(found) == sizes[found[0] % 3]
            assert blobs.read_ranges(own, [(0, 1), (999, 1)]) == [bytes([seed])] * 2

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert len(names(blobs, "own/")) == 48
    assert len(names(blobs, "shared/")) == 3


def test_a_big_blob_in_bounded_memory(blobs: Blobs) -> None:
    """Ten parts of an upload."""
    part = os.urandom(PART_BYTES // 2)
    count = 20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert blobs.write("big", (part for _ in range(count))) == count * len(part)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024
    if isinstance(blobs, LocalBlobs | S3Blobs):
        assert grown < 64 * MIB
    assert blobs.read("big", 19 * len(part), len(part)) == part
    assert blobs.read("big", 7 * len(part) - 3, 6) == part[-3:] + part[:3]
    assert blobs.read("big") == part * count
    wanted = [(number * len(part), len(part)) for number in range(count)]
    assert all(found == part for found in blobs.read_ranges("big", wanted))
    assert [blob.size for blob in blobs.list()] == [count * len(part)]


# Local


def test_a_file_with_another_name_is_no_blob(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path)
    (tmp_path / "README.md").write_text("hello")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x").write_text("hello")
    (tmp_path / "link").symlink_to("/etc/passwd")
    blobs.write("a", [b"a"])
    assert names(blobs) == ["a"]
    with pytest.raises(UsageError, match="another blob"):
        blobs.write("a/b", [b"b"])


def test_another_process_replaces_a_blob_that_is_held_open(tmp_path: Path) -> None:
    here, there = LocalBlobs(tmp_path), LocalBlobs(tmp_path)
    here.write("a", [b"old"])
    assert here.read("a") == b"old"
    there.write("a", [b"newer"])
    assert here.read("a") == b"newer"
    there.remove(["a"])
    with pytest.raises(NotFoundError):
        here.read("a")


def test_no_more_files_stay_open_than_promised(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path)
    for number in range(300):
        blobs.write(f"{number}", [b"x"])
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(300):
        blobs.read(f"{number}")
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 128
    blobs.close()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_stale_drafts_are_swept_young_ones_stay(tmp_path: Path) -> None:
    LocalBlobs(tmp_path).write("a", [b"a"])
    for name, age in (("old", 4000), ("young", 10)):
        draft = tmp_path / ".tmp" / name
        draft.write_bytes(b"half")
        os.utime(draft, (time.time() - age,) * 2)
    LocalBlobs(tmp_path)
    assert [path.name for path in (tmp_path / ".tmp").iterdir()] == ["young"]


WRITER = """
    import sys
    from pathlib import Path
    from lockgate.store.blobs.api import BackendOptions
    from lockgate.store.blobs.open import open_blobs

    endpoint, access, secret = sys.argv[3:6] if len(sys.argv) > 3 else (None,) * 3
    blobs = open_blobs(
        sys.argv[1], BackendOptions(endpoint=endpoint, access_key=access, secret_key=secret)
    )
    blobs.write("before", [b"whole"])

    def parts():
        for number in range(64):
            yield bytes([7]) * 1_000_000
            if number == int(sys.argv[2]):
                print("now", flush=True)

    while True:
        blobs.write("blob", parts())
"""


def kill_a_writer(where: str, after: int, *more: str) -> None:
    """Starts a process that writes blobs of 64 MB to `where` and kills it in the middle."""
    command = [sys.executable, "-c", textwrap.dedent(WRITER), where, str(after), *more]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"now\n"
        writer.send_signal(signal.SIGKILL)


@pytest.mark.parametrize("after", [0, 20, 40, 62, 63])
def test_a_killed_writer_leaves_a_whole_blob_or_none(tmp_path: Path, after: int) -> None:
    kill_a_writer(str(tmp_path), after)
    blobs = LocalBlobs(tmp_path)
    assert blobs.read("before") == b"whole"
    found = [blob.size for blob in blobs.list("blob")]
    assert found in ([], [64_000_000])
    if found:
        assert blobs.read("blob") == bytes([7]) * 64_000_000
    blobs.write("blob", [b"next"])
    assert blobs.read("blob") == b"next"


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a small file system")
    try:
        blobs = LocalBlobs(disk / "store")
        blobs.write("small", [b"x" * MIB])
        for parts in ([bytes(MIB)] * 10, iter([bytes(MIB)] * 10)):
            with pytest.raises(UsageError, match="the disk is full"):
                blobs.write("large", parts)
        assert names(blobs) == ["small"]
        assert list((disk / "store" / ".tmp").iterdir()) == []
        blobs.write("fits", [bytes(MIB)])
        blobs.close()
        inner = MemoryBlobs()
        inner.write("large", [b"y" * 8 * MIB])
        cached = CachedBlobs(inner, disk / "cache", 1024 * MIB)
        assert cached.read("large") == b"y" * 8 * MIB
        assert cached.read("large", 0, MIB) == b"y" * MIB
        assert cached.used_bytes < 2 * MIB
        cached.close()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_store_that_can_only_be_read(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("no right to mount a small file system")
    try:
        LocalBlobs(disk).write("a", [b"a"])
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        blobs = LocalBlobs(disk)
        assert blobs.read("a") == b"a"
        assert names(blobs) == ["a"]
        blobs.close()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


# S3


@pytest.mark.s3
def test_the_probe_sees_conditional_create_and_leaves_nothing(s3: dict[str, str]) -> None:
    blobs = S3Blobs(fresh(s3), options(s3))
    assert probe(blobs).conditional_create
    assert names(blobs) == []
    blobs.close()


@pytest.mark.s3
def test_errors_are_sentences_without_the_secret(s3: dict[str, str]) -> None:
    secret = "s3cr3t-" + uuid.uuid4().hex
    wrong = BackendOptions(
        endpoint=s3["endpoint"], access_key=s3["access_key"], secret_key=secret, attempts=1
    )
    assert secret not in repr(wrong)
    unreachable = BackendOptions(
        endpoint="http://127.0.0.1:1", access_key="a", secret_key=secret, attempts=1
    )
    cases = [
        (open_blobs(fresh(s3), wrong), DeniedError, "SignatureDoesNotMatch"),
        (open_blobs(fresh(s3), unreachable), TemporaryError, "127.0.0.1:1"),
        (open_blobs("s3://no-such-bucket-here", options(s3)), UsageError, "does not exist"),
    ]
    for blobs, kind, said in cases:
        for call in (
            lambda blobs=blobs: blobs.write("a", [b"x"]),
            lambda blobs=blobs: blobs.write("a", [bytes(PART_BYTES), b"x"]),
            lambda blobs=blobs: blobs.read("a"),
            lambda blobs=blobs: blobs.read_ranges("a", [(0, 1), (5 * MIB, 1)]),
            lambda blobs=blobs: list(blobs.list("a/")),
            lambda blobs=blobs: blobs.remove(["a"]),
        ):
            with pytest.raises(kind, match=said) as caught:
                call()
            assert secret not in str(caught.value)
            assert "\n" not in str(caught.value)
        blobs.close()


@pytest.mark.s3
def test_keys_come_from_the_environment_too(
    s3: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3["access_key"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3["secret_key"])
    monkeypatch.setenv("AWS_REGION", s3["region"])
    blobs = open_blobs(fresh(s3), BackendOptions(endpoint=s3["endpoint"]))
    blobs.write("a", [b"a"])
    assert blobs.read("a") == b"a"
    blobs.remove(["a"])
    blobs.close()


@pytest.mark.s3
@pytest.mark.parametrize("after", [20, 63])
def test_a_killed_upload_leaves_nothing_under_the_name(s3: dict[str, str], after: int) -> None:
    where = fresh(s3)
    kill_a_writer(where, after, s3["endpoint"], s3["access_key"], s3["secret_key"])
    blobs = S3Blobs(where, options(s3))
    assert blobs.read("before") == b"whole"
    assert [blob.size for blob in blobs.list("blob")] in ([], [64_000_000])
    blobs.remove(["before", "blob"])
    blobs.close()


@pytest.mark.s3
def test_objects_that_can_be_no_blobs_are_left_out(s3: dict[str, str]) -> None:
    where = fresh(s3)
    above, blobs = S3Blobs(where, options(s3)), S3Blobs(where + "/x", options(s3))
    above.write("x/a", [b"a"])
    above.write("xy", [b"no"])
    blobs._obstore.put(blobs._store, "README.md", b"no")
    assert names(blobs) == ["a"]
    blobs._obstore.delete(blobs._store, ["README.md", "a"])
    above.remove(["xy"])
    for name in HOSTILE:
        with pytest.raises(UsageError, match="name of a blob"):
            blobs.read(name)
