"""Objects of a store as files: all of one moment, gone on with after a kill, hostile names out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from tests.unit.derive.data.bench import WHY, Room, rows_of

from lockgate.core.errors import ConflictError, IntegrityError, LockgateError, UsageError
from lockgate.derive.steps.data.ingest import Ingest
from lockgate.derive.steps.data.outside import objects

from .taking import Taking, about

pytest.importorskip("obstore", reason="obstore is not installed")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A folder that obstore serves as objects."""
    made = tmp_path / "store"
    for name, text in {"raw/a.csv": "x\n1\n", "raw/deep/b.csv": "x\n2\n", "raw/c.txt": "no",
                       "other/d.csv": "x\n9\n"}.items():  # fmt: skip
        path = made / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return made


@pytest.fixture
def taking(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Taking:
    work = tmp_path / "work"
    work.mkdir()
    return Taking(work, f"file://{store}", monkeypatch)


def refused(taking: Taking, kind: type[LockgateError] = UsageError, **of: Any) -> str:
    with pytest.raises(kind) as caught:
        taking.take("objects", **of)
    return f"{caught.value.message} ({caught.value.hint})"


def names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_objects_become_files(taking: Taking, store: Path, tmp_path: Path) -> None:
    folder = taking.take("objects", prefix="raw", files=["*.csv"])
    assert names(folder) == ["a.csv", "deep/b.csv", "snapshot.json"]
    assert (folder / "deep/b.csv").read_text() == "x\n2\n"
    said = about(folder)
    assert (said["objects"], said["bytes"], said["prefix"]) == (2, 8, "raw")
    assert said["from"] == f"file://{store}"
    assert taking.reports[-1].done == taking.reports[-1].total == 8
    (store / "raw/c.txt").write_text("changed, and not asked for")
    again = taking.take("objects", prefix="/raw/", files=["*.csv"], digest=said["digest"])
    assert about(again)["digest"] == said["digest"]
    (store / "raw/a.csv").write_text("x\n7\n")
    assert "it has changed" in refused(
        taking, IntegrityError, prefix="raw", files=["*.csv"], digest=said["digest"]
    )
    pytest.importorskip("pyarrow", reason=WHY)
    room = Room(tmp_path)
    assert rows_of(room.run(Ingest(), {"source": folder})) == [{"x": 1}, {"x": 2}]


def test_whole_objects_survive_a_kill(
    taking: Taking, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = objects._Store.read
    asked: list[str] = []

    def read(self: Any, found: objects.Found) -> Any:
        asked.append(found.name)
        if found.name == "raw/deep/b.csv" and len(asked) < 5:
            raise KeyboardInterrupt
        return real(self, found)

    monkeypatch.setattr(objects._Store, "read", read)
    monkeypatch.setattr(objects, "_THREADS", 1)
    with pytest.raises(KeyboardInterrupt):
        taking.take("objects")
    assert set(asked) == {"other/d.csv", "raw/a.csv", "raw/c.txt", "raw/deep/b.csv"}
    (store / "raw/a.csv").write_text("x\n100\n")
    asked += ["" for _ in range(5)]
    before = len(asked)
    folder = taking.take("objects")
    assert set(asked[before:]) == {"raw/a.csv", "raw/deep/b.csv"}
    assert (folder / "raw/a.csv").read_text() == "x\n100\n"
    assert len(names(folder)) == 5
    assert list((taking.scratch / "objects").iterdir()) == []


def test_what_changes_meanwhile_is_noticed(
    taking: Taking, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = objects._Fetching.all

    def change(self: Any) -> Any:
        found = real(self)
        (store / "raw/new.csv").write_text("x\n3\n")
        return found

    monkeypatch.setattr(objects._Fetching, "all", change)
    assert "were changed while" in refused(taking, ConflictError, prefix="raw")
    monkeypatch.setattr(objects._Fetching, "all", real)
    found = [objects.Found(name="raw/a.csv", path="raw/a.csv", size=4, mark="another")]
    monkeypatch.setattr(objects._Store, "list", lambda self: iter(found))
    assert "'raw/a.csv' was changed" in refused(taking, ConflictError)


@pytest.mark.parametrize("name", [
    "", "/a", "a//b", "../a", "a/../b", "a/./b", ".", "a\\b", "a\nb", "a\0b", "x" * 256,
    "snapshot.json", "a/", "\u202ea", "é" * 128, "a/" * 600 + "a",
])  # fmt: skip
def test_names_that_are_no_files_are_refused(name: str) -> None:
    with pytest.raises(UsageError):
        objects.check_name(name)


@pytest.mark.parametrize("name", ["a", "deep/er/ä b.csv", "a%2F..%2Fb", "..a", "x" * 255])
def test_names_that_are_files(name: str) -> None:
    objects.check_name(name)


def test_an_object_and_a_folder_of_one_name() -> None:
    objects.check_folders(["a", "b/c", "b/d"])
    with pytest.raises(UsageError, match="both can't be files"):
        objects.check_folders(["a/b/c", "a/b", "x"])


def test_limits(taking: Taking) -> None:
    assert "more than 2 objects" in refused(taking, most_files=2)
    assert "6 bytes" in refused(taking, most_bytes=6)
    assert "no object" in refused(taking, files=["*.parquet"])
    assert "no object" in refused(taking, prefix="nowhere")


def test_a_large_object_is_streamed(taking: Taking, store: Path) -> None:
    block = os.urandom(1 << 20)
    with (store / "raw/big.bin").open("wb") as file:
        for _ in range(64):
            file.write(block)
    folder = taking.take("objects", files=["*.bin"])
    assert (folder / "raw/big.bin").read_bytes() == block * 64


def test_no_error_has_the_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "wJalrXUtnFEMI"
    for address in (
        f"s3://bucket/x?region=us-east-1&endpoint=http://127.0.0.1:1&access_key_id=AKIA&"
        f"secret_access_key={secret}", f"s3://bucket?nonsense={secret}",
        f"gs://bucket?google_service_account_key={secret}", f"s3://{secret}@bucket?region={secret}",
    ):  # fmt: skip
        monkeypatch.setattr(objects, "_settings", quick(objects._settings))
        with pytest.raises(LockgateError) as caught:
            Taking(tmp_path, address, monkeypatch).take("objects")
        assert secret not in f"{caught.value.message} {caught.value.hint}"


def quick(settings: Any) -> Any:
    """Returns settings without patience."""

    def made(address: str) -> dict[str, Any]:
        found: dict[str, Any] = settings(address)
        return {**found, "retry_config": {"max_retries": 0}} if found else found

    return made
