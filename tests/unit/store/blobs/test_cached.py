"""The cache: its limit, what it keeps, what damage and kills do to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest

from lockgate.core.errors import NotFoundError, UsageError
from lockgate.store.blobs.cached import CachedBlobs
from lockgate.store.blobs.memory import MemoryBlobs

PAGE = 4096
ROOM = PAGE - 32  # bytes of a range that takes one page


class Counting:
    """Memory blobs that count the ranges asked of them."""

    def __init__(self) -> None:
        inner = MemoryBlobs()
        self.write, self.list, self.remove, self.close = (
            inner.write, inner.list, inner.remove, inner.close,
        )  # fmt: skip
        self.inner = inner
        self.asked: list[tuple[str, int, int | None]] = []

    def read(self, name: str, begin: int = 0, size: int | None = None) -> bytes:
        self.asked.append((name, begin, size))
        return self.inner.read(name, begin, size)

    def read_ranges(self, name: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        self.asked += [(name, begin, size) for begin, size in ranges]
        return self.inner.read_ranges(name, ranges)


@pytest.fixture
def inner() -> Counting:
    made = Counting()
    for letter in "abcdefgh":
        made.write(letter, [letter.encode() * 100_000])
    return made


def on_disk(folder: Path) -> int:
    """Returns the bytes of all files, with whole blocks."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return sum(-(-path.stat().st_size // PAGE) * PAGE for path in files)


def test_a_range_is_fetched_once(inner: Counting, tmp_path: Path) -> None:
    cache = CachedBlobs(inner, tmp_path, 10 * PAGE)
    for _ in range(3):
        assert cache.read("a", 5, 10) == b"a" * 10
        assert cache.read_ranges("a", [(5, 10), (7, 2), (7, 2)]) == [b"a" * 10, b"aa", b"aa"]
    assert inner.asked == [("a", 5, 10), ("a", 7, 2)]
    with pytest.raises(NotFoundError):
        cache.read("z")


def test_a_restart_forgets_nothing(inner: Counting, tmp_path: Path) -> None:
    cache = CachedBlobs(inner, tmp_path, 10 * PAGE)
    cache.read("a", 0, 10)
    used = cache.used_bytes
    cache.close()
    cache = CachedBlobs(inner, tmp_path, 10 * PAGE)
    assert cache.used_bytes == used == PAGE
    cache.read("a", 0, 10)
    assert len(inner.asked) == 1


def test_the_limit_is_never_passed(inner: Counting, tmp_path: Path) -> None:
    cache = CachedBlobs(inner, tmp_path, 7 * PAGE)
    random = Random(5)
    for _ in range(300):
        name, begin, size = random.choice("abcdefgh"), random.randrange(9), random.randrange(30_000)
        assert cache.read(name, begin, size) == name.encode() * size
        assert on_disk(tmp_path / "ranges") == cache.used_bytes <= 7 * PAGE
    cache.close()
    assert CachedBlobs(inner, tmp_path, 2 * PAGE).used_bytes <= 2 * PAGE


def test_the_least_recently_used_goes_first(inner: Counting, tmp_path: Path) -> None:
    cache = CachedBlobs(inner, tmp_path, 2 * PAGE)
    for name in "abac":
        cache.read(name, 0, ROOM)
    inner.asked.clear()
    for name in "acb":
        cache.read(name, 0, ROOM)
    assert inner.asked == [("b", 0, ROOM)]


def test_a_restart_knows_what_was_used_last(inner: Counting, tmp_path: Path) -> None:
    cache = CachedBlobs(inner, tmp_path, 2 * PAGE)
    for name in "ab":
        cache.read(name, 0, ROOM)
        (made,) = (tmp_path / "ranges" / name).iterdir()
        os.utime(made, (1e9, 1e9))
    cache.read("a", 0, ROOM)
    cache.close()
    cache = CachedBlobs(inner, tmp_path, 2 * PAGE)
    cache.read("c", 0, ROOM)
    inner.asked.clear()
    cache.read("a", 0, ROOM)
    assert inner.asked == []


def test_what_is_pinned_stays(inner: Counting, tmp_path: Path) -> None:
    cache = CachedBlobs(inner, tmp_path, 2 * PAGE)
    cache.pin("a")
    for name in "abcde":
        cache.read(name, 0, ROOM)
    cache.pin("e")
    cache.read("f", 0, ROOM)  # pinned ranges fill the cache: read past it
    assert cache.used_bytes == 2 * PAGE
    inner.asked.clear()
    for name in "aef":
        cache.read(name, 0, ROOM)
    assert inner.asked == [("f", 0, ROOM)]
    cache.unpin("a")
    cache.unpin("never")
    cache.read("g", 0, ROOM)
    inner.asked.clear()
    for name in "ega":
        cache.read(name, 0, ROOM)
    assert inner.asked == [("a", 0, ROOM)]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "other"])
def test_a_damaged_entry_is_fetched_anew(inner: Counting, tmp_path: Path, damage: str) -> None:
    cache = CachedBlobs(inner, tmp_path, 10 * PAGE)
    cache.read("a", 0, 100)
    cache.read("b", 0, 100)
    path = tmp_path / "ranges" / "a" / "@0-100"
    raw = path.read_bytes()
    path.write_bytes({
        "flip": raw[:-1] + b"x", "cut": raw[:-1], "empty": b"",
        "other": (tmp_path / "ranges" / "b" / "@0-100").read_bytes(),
    }[damage])  # fmt: skip
    assert cache.read("a", 0, 100) == b"a" * 100
    assert path.read_bytes() == raw
    assert cache.used_bytes == 2 * PAGE
    assert cache.read("a", 0, 100) == b"a" * 100
    assert len(inner.asked) == 3


def test_an_entry_that_someone_removed_is_fetched(inner: Counting, tmp_path: Path) -> None:
    cache = CachedBlobs(inner, tmp_path, 10 * PAGE)
    cache.read("a", 0, 100)
    (tmp_path / "ranges" / "a" / "@0-100").unlink()
    assert cache.read("a", 0, 100) == b"a" * 100


def test_what_is_written_or_removed_here_is_forgotten(inner: Counting, tmp_path: Path) -> None:
    cache = CachedBlobs(inner, tmp_path, 10 * PAGE)
    cache.read("a", 0, 2)
    cache.read("b", 0, 2)
    cache.write("a", [b"new"])
    assert cache.read("a", 0, 2) == b"ne"
    cache.remove(["a", "b"])
    for name in "ab":
        with pytest.raises(NotFoundError):
            cache.read(name, 0, 2)
    assert cache.used_bytes == on_disk(tmp_path / "ranges") == 0


def test_a_range_read_across_a_write_is_not_kept(inner: Counting, tmp_path: Path) -> None:
    cache = CachedBlobs(inner, tmp_path, 10 * PAGE)
    real = inner.read

    def slow(name: str, begin: int = 0, size: int | None = None) -> bytes:
        data = real(name, begin, size)
        inner.read = real  # type: ignore[method-assign]
        cache.write("a", [b"new"])
        return data

    inner.read = slow  # type: ignore[method-assign]
    assert cache.read("a", 0, 2) == b"aa"
    assert cache.read("a", 0, 2) == b"ne"


def test_only_some_names(inner: Counting, tmp_path: Path) -> None:
    inner.write("packs/a", [b"abc"])
    cache = CachedBlobs(inner, tmp_path, 10 * PAGE, only=("packs/",))
    for _ in range(2):
        cache.read("packs/a", 0, 2)
        cache.read("a", 0, 2)
    assert inner.asked == [("packs/a", 0, 2), ("a", 0, 2), ("a", 0, 2)]


def test_a_second_process_reads_and_fills_nothing(inner: Counting, tmp_path: Path) -> None:
    first = CachedBlobs(inner, tmp_path, 10 * PAGE)
    second = CachedBlobs(inner, tmp_path, 10 * PAGE)
    first.read("a", 0, 10)
    second.read("a", 0, 10)
    second.read("b", 0, 10)
    assert inner.asked == [("a", 0, 10), ("b", 0, 10)]
    assert on_disk(tmp_path / "ranges") == PAGE
    first.close()
    second.close()
    assert CachedBlobs(inner, tmp_path, 10 * PAGE).used_bytes == PAGE


def test_many_threads(inner: Counting, tmp_path: Path) -> None:
    cache = CachedBlobs(inner, tmp_path, 6 * PAGE)

    def work(seed: int) -> None:
        random = Random(seed)
        for _ in range(150):
            name, begin = random.choice("abcdefgh"), random.randrange(4)
            assert cache.read(name, begin, ROOM) == name.encode() * ROOM
            if random.random() < 0.05:
                cache.write(name, [name.encode() * 100_000])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert on_disk(tmp_path / "ranges") == cache.used_bytes <= 6 * PAGE
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_folder_that_can_not_be_used_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="can't be used"):
        CachedBlobs(MemoryBlobs(), tmp_path / "file", 10)


FILLER = """
    import sys
    from pathlib import Path
    from lockgate.store.blobs.cached import CachedBlobs
    from lockgate.store.blobs.memory import MemoryBlobs

    inner = MemoryBlobs()
    inner.write("a", [b"a" * 1_000_000])
    cache = CachedBlobs(inner, Path(sys.argv[1]), 40 * 4096)
    for number in range(1_000_000):
        cache.read("a", number, 9000)
        if number == 200:
            print("now", flush=True)
"""


def test_a_kill_leaves_a_cache_that_works(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(FILLER), str(tmp_path)]
    for _ in range(3):
        with subprocess.Popen(command, stdout=subprocess.PIPE) as filler:
            assert filler.stdout is not None
            assert filler.stdout.readline() == b"now\n"
            filler.send_signal(signal.SIGKILL)
        inner = MemoryBlobs()
        inner.write("a", [b"a" * 1_000_000])
        cache = CachedBlobs(inner, tmp_path, 40 * PAGE)
        assert 0 < cache.used_bytes <= 40 * PAGE
        assert cache.used_bytes == on_disk(tmp_path / "ranges")
        assert list((tmp_path / "tmp").iterdir()) == []
        for path in entries(tmp_path):
            begin, size = map(int, path.name[1:].split("-"))
            assert cache.read("a", begin, size) == b"a" * size
        cache.close()


def entries(folder: Path) -> Iterator[Path]:
    yield from list((folder / "ranges").rglob("@*"))
