"""A folder on disk → the plan of what to publish. Reads names and headers, no weights."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from lockgate.core.digests import digest_of
from lockgate.core.errors import NotFoundError, UsageError
from lockgate.registry.manifest import Manifest, check_paths
from lockgate.store.api import Artifact
from lockgate.store.formats.spans import TensorSpan
from lockgate.store.split import FilePlan, cuts, look_elsewhere, plan_file

_DEEPEST = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderPlan:
    """The files of a folder as they will be cut, and its empty folders."""

    files: tuple[FilePlan, ...]
    folders: tuple[str, ...]

    @property
    def size(self) -> int:
        """The bytes of all files together."""
        return sum(file.size for file in self.files)


def scan(folder: Path, exclude: Sequence[str] = ()) -> FolderPlan:
    """Returns the plan of `folder` without what matches a pattern of `exclude`.

    A link to a file inside the folder is taken as that file. Raises NotFoundError for no folder,
    UsageError for a link out of it, a name that is not Unicode, a device, folders more than a
    hundred deep, or nothing to publish;
    IntegrityError for a corrupt safetensors or GGUF file. Each names the file.
    """
    if not folder.exists():
        raise NotFoundError(f"there is no folder {folder}")
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder", hint="publish the folder that holds the file")
    root = folder.resolve()
    found: list[tuple[str, Path]] = []
    folders: list[str] = []
    for path, source in _walk(root, root, tuple(exclude)):
        if source is None:
            folders.append(path)
        else:
            found.append((path, source))
    elsewhere: dict[str, list[TensorSpan]] = {}
    for path, source in found:
        for other, spans in look_elsewhere(source, path).items():
            elsewhere.setdefault(other, []).extend(spans)
    files = [plan_file(source, path, elsewhere) for path, source in found]
    if not files:
        raise UsageError(f"{folder} holds no file to publish")
    check_paths([file.path for file in files], folders)
    return FolderPlan(files=tuple(files), folders=tuple(folders))


def _walk(
    folder: Path, root: Path, exclude: tuple[str, ...], depth: int = 1
) -> Iterator[tuple[str, Path | None]]:
    if depth > _DEEPEST:
        raise UsageError(
            f"{root} has folders more than {_DEEPEST} folders deep",
            hint="is it a loop of copies? leave it out with --exclude",
        )
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise UsageError(f"{folder} can't be listed: {error.strerror}") from error
    if not entries and folder != root:
        yield folder.relative_to(root).as_posix(), None
    for entry in entries:
        path = (folder / entry.name).relative_to(root).as_posix()
        if any(fnmatch(path, pattern) or fnmatch(entry.name, pattern) for pattern in exclude):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(folder / entry.name, root, exclude, depth + 1)
        else:
            yield path, _file(folder / entry.name, path, root)


def _file(source: Path, path: str, root: Path) -> Path:
    """Returns the file that `path` stands for; raises UsageError if it is not one in the tree."""
    try:
        real = source.resolve(strict=True)
        mode = real.stat().st_mode
    except (OSError, RuntimeError) as error:
        raise UsageError(f"{path!r} can't be read: {error}") from error
    if source.is_symlink() and not real.is_relative_to(root):
        raise UsageError(
            f"{path} is a link out of the folder, to {real}",
            hint="copy the folder with its links resolved first: cp -rL",
        )
    if stat.S_ISDIR(mode):
        raise UsageError(f"{path} is a link to a folder", hint="cp -rL resolves it")
    if not stat.S_ISREG(mode):
        raise UsageError(f"{path} is not a regular file", hint="leave it out with --exclude")
    return real


def folder_manifest(folder: Path) -> Manifest:
    """Returns the manifest that publishing `folder` would give; stores nothing.

    Raises what `scan` raises.
    """
    plan = scan(folder)
    artifacts = []
    for file in plan.files:
        with file.source.open("rb") as source:
            pieces = tuple(
                cut.piece(digest_of(os.pread(source.fileno(), cut.size, cut.begin)))
                for cut in cuts(file, source)
            )
        artifacts.append(
            Artifact(path=file.path, size=file.size, pieces=pieces, executable=file.executable)
        )
    return Manifest(artifacts=tuple(artifacts), folders=plan.folders)
