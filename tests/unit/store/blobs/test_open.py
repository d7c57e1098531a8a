"""From an address to a backend."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from lockgate.core.errors import UsageError
from lockgate.store.blobs import keys
from lockgate.store.blobs.api import BackendOptions
from lockgate.store.blobs.encrypted import EncryptedBlobs
from lockgate.store.blobs.local import LocalBlobs
from lockgate.store.blobs.memory import MemoryBlobs
from lockgate.store.blobs.open import open_blobs
from lockgate.store.blobs.retry import RetryBlobs

PAGE = Path(__file__).resolve().parents[4] / "docs" / "backends.md"


def test_the_page_has_every_option() -> None:
    shown = set(re.findall(r"`(\w+)`", PAGE.read_text("utf-8")))
    assert {field.name for field in fields(BackendOptions)} <= shown


def test_the_page_shows_what_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    first, second = blocks.findall(PAGE.read_text("utf-8"))
    names: dict[str, Any] = {}
    exec(first, names)  # noqa: S102
    names["blobs"].write("a", [b"x"])
    exec(second, names)  # noqa: S102
    assert names["blobs"].read("a") == b"x"
    newest = keys.load(tmp_path / "keys.json").newest
    assert bytes.fromhex(newest) == (tmp_path / "store" / "a").read_bytes()[16:24]


def test_addresses(tmp_path: Path) -> None:
    assert isinstance(open_blobs("memory:"), MemoryBlobs)
    for where in (str(tmp_path / "a b"), f"file://{tmp_path}/a%20b"):
        blobs = open_blobs(where)
        assert isinstance(blobs, LocalBlobs)
        blobs.write("x", [b"x"])
    assert (tmp_path / "a b" / "x").read_bytes() == b"x"
    assert [path.name for path in tmp_path.iterdir()] == ["a b"]
    for where in ("", "ftp://x/y", "http://x", "s4://x"):
        with pytest.raises(UsageError, match="no place for a store"):
            open_blobs(where)
    for where in ("s3://", "s3:bucket"):
        with pytest.raises(UsageError, match="can't be opened"):
            open_blobs(where)


def test_an_object_store_is_retried() -> None:
    blobs = open_blobs("s3://bucket/x", BackendOptions(access_key="a", secret_key="b"))
    assert isinstance(blobs, RetryBlobs)
    blobs.close()


def test_everything_before_a_backend(tmp_path: Path) -> None:
    keys.create(tmp_path / "keys.json")
    options = BackendOptions(
        bytes_per_second=1e9,
        cache_folder=tmp_path / "cache",
        key_file=tmp_path / "keys.json",
    )
    blobs = open_blobs(str(tmp_path / "store"), options)
    assert isinstance(blobs, EncryptedBlobs)
    blobs.write("a", [b"secret" * 100])
    assert blobs.read("a", 0, 6) == b"secret"
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name.startswith("@") for path in files)
    assert not any(b"secret" in path.read_bytes() for path in files)
    blobs.close()


@pytest.mark.parametrize(
    ("package", "extra", "where"),
    [("obstore", "s3", "s3://bucket"), ("cryptography", "encryption", "memory:")],
)
def test_a_missing_package_is_said(
    package: str, extra: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys.create(tmp_path / "keys.json")
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match="not installed") as caught:
        open_blobs(where, BackendOptions(key_file=tmp_path / "keys.json"))
    assert caught.value.hint == f"pip install 'lockgate[{extra}]'"


def test_nothing_heavy_is_imported_before_it_is_used() -> None:
    code = (
        "import sys, lockgate.store.blobs.open, lockgate.store.blobs.s3, "
        "lockgate.store.blobs.encrypted, lockgate.store.blobs.cached\n"
        "assert not {'obstore', 'cryptography'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
