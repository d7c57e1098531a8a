"""Folders deeper than a stack, and names that are no text, are measured and removed."""

from __future__ import annotations

import os
from pathlib import Path

from lockgate.host import trees


def test_a_folder_deeper_than_the_stack_is_measured_and_removed(tmp_path: Path) -> None:
    top, back = tmp_path / "top", Path.cwd()
    top.mkdir()
    os.chdir(top)
    try:
        for _ in range(1500):
            Path("d").mkdir()
            os.chdir("d")
        Path("file").write_bytes(b"1" * 10_000)
    finally:
        os.chdir(back)
    (top / "near").write_bytes(b"1" * 10_000)
    assert max(depth for depth, _ in trees.walk(top)) > 1000
    assert 10_000 <= trees.taken_bytes(top) < 200_000
    trees.remove(top)
    assert list(tmp_path.iterdir()) == []


def test_links_are_removed_and_not_followed(tmp_path: Path) -> None:
    kept, top = tmp_path / "kept", tmp_path / "top"
    kept.mkdir()
    top.mkdir()
    (kept / "file").write_text("1")
    (top / "link").symlink_to(kept)
    assert [entry.name for _, entry in trees.walk(top)] == ["link"]
    trees.remove(top)
    (tmp_path / "alias").symlink_to(kept)
    trees.remove(tmp_path / "alias")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (kept / "file").exists()


def test_what_is_no_folder_is_removed_too(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("1")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / os.fsdecode(b"\xff")).mkdir()
    for path in [*tmp_path.iterdir(), tmp_path / "nobody"]:
        trees.remove(path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_closed_is_opened(tmp_path: Path) -> None:
    (tmp_path / "top" / "inner").mkdir(parents=True)
    (tmp_path / "top" / "inner" / "file").write_text("1")
    (tmp_path / "top" / "inner").chmod(0)
    trees.remove(tmp_path / "top")
    assert list(tmp_path.iterdir()) == []
