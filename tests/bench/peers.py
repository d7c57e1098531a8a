"""What others offer to keep many versions of weights: one small store each, behind one shape.

Each is made with the folder that is its store. `missing()` says why it can't be had, or "";
`ready()` imports and prepares outside of the clock; `put` stores a folder, `get` writes it back,
`size` is the bytes of what must be kept. Where a choice had to be made, it favours the peer.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def files_of(folder: Path) -> list[Path]:
    """Returns the files below `folder`, in order."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def bytes_of(folder: Path) -> int:
    """Returns the bytes of all files below `folder`."""
    return sum(path.stat().st_size for path in files_of(folder)) if folder.exists() else 0


class Peer:
    """A store; the default keeps copies (`cp`)."""

    name = "cp"
    needs: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()

    def __init__(self, store: Path) -> None:
        self.store = store
        store.mkdir(parents=True, exist_ok=True)

    @classmethod
    def missing(cls) -> str:
        absent = [name for name in cls.needs if find_spec(name) is None]
        absent += [name for name in cls.tools if shutil.which(name) is None]
        return f"{' and '.join(absent)} not here" if absent else ""

    def ready(self, folder: Path, label: str) -> None:
        """Imports what is needed and brings the store in order, outside of the clock."""

    def put(self, folder: Path, label: str, parent: Path | None) -> None:
        shutil.copytree(folder, self.store / label, dirs_exist_ok=True)

    def get(self, label: str, target: Path) -> None:
        shutil.copytree(self.store / label, target)

    def size(self) -> int:
        return bytes_of(self.store)


class Zstd(Peer):
    """Each file by itself, one thread."""

    name = "zstd-3"
    needs = ("zstandard",)
    level = 3

    def ready(self, folder: Path, label: str) -> None:
        import zstandard

        self.zstandard: Any = zstandard

    def put(self, folder: Path, label: str, parent: Path | None) -> None:
        for path in files_of(folder):
            target = self.store / label / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            with path.open("rb") as source, target.open("wb") as sink:
                self.zstandard.ZstdCompressor(level=self.level).copy_stream(
                    source, sink, size=path.stat().st_size
                )

    def get(self, label: str, target: Path) -> None:
        for path in files_of(self.store / label):
            out = target / path.relative_to(self.store / label)
            out.parent.mkdir(parents=True, exist_ok=True)
            with path.open("rb") as source, out.open("wb") as sink:
                self.zstandard.ZstdDecompressor().copy_stream(source, sink)


class PatchFrom(Peer):
    """zstd with the parent's file of the same name, or its largest, as the dictionary."""

    name = "zstd-3 --patch-from"
    tools = ("zstd",)

    def put(self, folder: Path, label: str, parent: Path | None) -> None:
        (self.store / label).mkdir(exist_ok=True)
        for path in files_of(folder):
            target = self.store / label / (path.name + ".zst")
            base = _base_file(path, folder, parent)
            run_tool("zstd", "-q", "-f", "-3", *_patch(base), str(path), "-o", str(target))
            if base:
                target.with_suffix(".base").symlink_to(base)

    def get(self, label: str, target: Path) -> None:
        target.mkdir()
        for path in files_of(self.store / label):
            link = path.with_suffix(".base")
            base = link.readlink() if link.is_symlink() else None
            run_tool("zstd", "-q", "-d", *_patch(base), str(path), "-o", str(target / path.stem))


def _base_file(path: Path, folder: Path, parent: Path | None) -> Path | None:
    if parent is None:
        return None
    same = parent / path.relative_to(folder)
    return same if same.exists() else max(files_of(parent), key=lambda p: p.stat().st_size)


def _patch(base: Path | None) -> list[str]:
    return ["--long=31", f"--patch-from={base}"] if base else []


class Xet(Peer):
    """The Hub's storage client against its own store in a folder; SHA-256 left out."""

    name = "hf_xet"
    needs = ("hf_xet",)
    _caches = ("shard-cache", "shard-session", "xorb_metadata", ".redb", ".tagset")

    def ready(self, folder: Path, label: str) -> None:
        os.environ["HF_HOME"] = str(self.store / "home")
        os.environ["HF_XET_CHUNK_CACHE_SIZE_BYTES"] = "0"
        import hf_xet

        self.xet: Any = hf_xet
        self.end = f"local://{self.store / 'cas'}"

    def put(self, folder: Path, label: str, parent: Path | None) -> None:
        session = self.xet.XetSession()
        with session.new_upload_commit(endpoint=self.end) as commit:
            sent = [
                (path, commit.start_upload_file(str(path), sha256=self.xet.SKIP_SHA256))
                for path in files_of(folder)
            ]
        listing = [
            (str(path.relative_to(folder)), found.hash, found.file_size)
            for path, handle in sent
            for found in [handle.result().xet_info]
        ]
        (self.store / f"{label}.json").write_text(json.dumps(listing))

    def get(self, label: str, target: Path) -> None:
        session = self.xet.XetSession()
        with session.new_file_download_group(endpoint=self.end) as group:
            for name, digest, size in json.loads((self.store / f"{label}.json").read_text()):
                out = target / name
                out.parent.mkdir(parents=True, exist_ok=True)
                group.start_download_file(self.xet.XetFileInfo(digest, size), str(out))

    def size(self) -> int:
        found = files_of(self.store / "cas")
        return sum(p.stat().st_size for p in found if not any(c in str(p) for c in self._caches))


class Restic(Peer):
    name = "restic"
    tools = ("restic",)

    def _restic(self, *args: str, cwd: Path | None = None) -> None:
        env = {"RESTIC_PASSWORD": "x", "RESTIC_CACHE_DIR": str(self.store / "cache")}
        run_tool("restic", "-q", "-r", str(self.store / "repo"), *args, cwd=cwd, env=env)

    def ready(self, folder: Path, label: str) -> None:
        if not (self.store / "repo").exists():
            self._restic("init", "--repository-version", "2")

    def put(self, folder: Path, label: str, parent: Path | None) -> None:
        self._restic("backup", "--tag", label, "--host", label, "--ignore-inode", ".", cwd=folder)

    def get(self, label: str, target: Path) -> None:
        whole = target.with_name(target.name + ".whole")
        self._restic("restore", "latest", "--tag", label, "--target", str(whole))
        found = next(path.parent for path in files_of(whole))
        found.rename(target)
        shutil.rmtree(whole, ignore_errors=True)

    def size(self) -> int:
        return bytes_of(self.store / "repo")


class Borg(Peer):
    name = "borg (zstd,3)"
    tools = ("borg",)

    def _borg(self, *args: str, cwd: Path | None = None) -> None:
        env = {"BORG_BASE_DIR": str(self.store / "home"), "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
               "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes"}  # fmt: skip
        run_tool("borg", *args, cwd=cwd, env=env)

    def ready(self, folder: Path, label: str) -> None:
        if not (self.store / "repo").exists():
            self._borg("init", "-e", "none", str(self.store / "repo"))

    def put(self, folder: Path, label: str, parent: Path | None) -> None:
        name = label if not (self.store / label).exists() else f"{label}-{os.getpid()}"
        (self.store / label).touch()
        repo = f"{self.store / 'repo'}::{name}"
        self._borg("create", "--compression", "zstd,3", repo, ".", cwd=folder)

    def get(self, label: str, target: Path) -> None:
        target.mkdir()
        self._borg("extract", f"{self.store / 'repo'}::{label}", cwd=target)

    def size(self) -> int:
        return bytes_of(self.store / "repo" / "data")


class GitLfs(Peer):
    name = "git-lfs"
    tools = ("git", "git-lfs")

    def _git(self, *args: str, tree: Path | None = None) -> None:
        where = ["--git-dir", str(self.store / ".git"), "--work-tree", str(tree or self.store)]
        who = ["-c", "user.name=bench", "-c", "user.email=bench@example.org"]
        run_tool("git", *where, *who, *args, cwd=tree)

    def ready(self, folder: Path, label: str) -> None:
        if not (self.store / ".git").exists():
            run_tool("git", "init", "-q", str(self.store))
            self._git("lfs", "install", "--local")
            (self.store / ".git" / "info").mkdir(exist_ok=True)
            (self.store / ".git" / "info" / "attributes").write_text("*.safetensors filter=lfs\n")

    def put(self, folder: Path, label: str, parent: Path | None) -> None:
        (self.store / ".git" / "index").unlink(missing_ok=True)
        self._git("add", "-A", ".", tree=folder)
        self._git("commit", "-q", "--allow-empty", "-m", label, tree=folder)
        self._git("tag", "-f", label, tree=folder)

    def get(self, label: str, target: Path) -> None:
        target.mkdir()
        self._git("checkout", "-q", "-f", label, "--", ".", tree=target)

    def size(self) -> int:
        return bytes_of(self.store / ".git")


class Dvc(Peer):
    """`dvc add` of a folder that lies in the workspace; the copy that puts it there is free."""

    name = "dvc"

    @classmethod
    def missing(cls) -> str:
        return "" if cls.tool() else "dvc not here"

    @staticmethod
    def tool() -> str | None:
        return shutil.which(os.environ.get("BENCH_DVC", "dvc"))

    def _dvc(self, *args: str) -> None:
        env = {"DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(self.store / "site")}
        run_tool(str(self.tool()), *args, "-q", cwd=self.store, env=env)

    def ready(self, folder: Path, label: str) -> None:
        if not (self.store / ".dvc").exists():
            self._dvc("init", "--no-scm")
            self._dvc("config", "cache.type", "copy")
        if folder.is_dir():
            shutil.copytree(folder, self.store / label, dirs_exist_ok=True)
        else:
            shutil.rmtree(self.store / label, ignore_errors=True)

    def put(self, folder: Path, label: str, parent: Path | None) -> None:
        self._dvc("add", label)

    def get(self, label: str, target: Path) -> None:
        self._dvc("checkout", f"{label}.dvc")
        (self.store / label).rename(target)

    def size(self) -> int:
        return bytes_of(self.store / ".dvc" / "cache")


def run_tool(*argv: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    done = subprocess.run(argv, cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True)
    if done.returncode:
        raise RuntimeError(f"{argv[0]} failed: {done.stderr.decode(errors='replace')[-800:]}")
