"""Runs an evaluation harness of others in a process of its own, offline, on a copy of its task.

A task's folder may hold code, which runs as the user who asked: it is trusted, as the suite is.
What it reads there is part of the question. The process gets no token, no proxy and no hub, an
empty home, and an end; nothing of it outlives the command.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from lockgate.core.errors import UsageError
from lockgate.host.jobs.api import Ended, Job, Limits
from lockgate.host.jobs.local import LocalJobs

_MOST_FILES = 10_000
_MOST_BYTES = 1 << 30  # of what a harness writes down
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "PYTHONPATH")
_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
# in the task's folder, so that its data are found; that folder is no place for modules to shadow
_START = (
    "import os, runpy, sys\n"
    "folder, module = sys.argv[1:3]\n"
    "sys.path[:] = [p for p in sys.path if p]\n"
    "os.chdir(folder)\n"
    "sys.argv[:] = [module, *sys.argv[3:]]\n"
    "runpy.run_module(module, run_name='__main__', alter_sys=True)\n"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Harness:
    """A harness: its distribution, the modules that it needs, and the extra that brings them."""

    distribution: str
    module: str
    needs: tuple[str, ...]
    extra: str

    def check(self) -> None:
        """Raises UsageError when something that it needs is not installed."""
        for name in (self.module, *self.needs):
            if importlib.util.find_spec(name) is None:
                raise UsageError(
                    f"{self.module} can't be run: {name} is not installed",
                    hint=f"pip install 'lockgate[{self.extra}]'",
                )

    def reads(self, folder: Path) -> Sequence[Path]:
        """Returns the files of a task's folder, and the one that names the harness's version."""
        self.check()
        about = [
            Path(str(file.locate()))
            for file in metadata.distribution(self.distribution).files or ()
            if file.name == "METADATA"
        ]
        return (*files_below(folder), *about[:1])


def files_below(folder: Path) -> list[Path]:
    """Returns its files by name, without Python's caches.

    Raises UsageError when one leads out of it, or when there are more than 10,000.
    """
    root = folder.resolve()
    found = []
    for path in sorted(folder.rglob("*")):
        if "__pycache__" in path.parts or (path.is_dir() and not path.is_symlink()):
            continue
        if not path.resolve().is_relative_to(root) or not path.is_file():
            raise UsageError(f"{path} is no file of that folder")
        found.append(path)
        if len(found) > _MOST_FILES:
            raise UsageError(f"{folder} has more than {_MOST_FILES} files")
    return found


@contextmanager
def workshop(folder: Path) -> Iterator[Path]:
    """Gives a folder to work in, removed after: `task` is a copy of `folder`, `out` is empty."""
    with tempfile.TemporaryDirectory(prefix="lockgate-harness-") as name:
        place = Path(name).resolve()
        for part in ("task", "out", "home", "tmp"):
            (place / part).mkdir()
        for path in files_below(folder):
            copy = place / "task" / path.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        yield place


def run(
    harness: Harness, arguments: Sequence[str], place: Path, *, env: Mapping[str, str],
    seconds: float,
) -> None:  # fmt: skip
    """Runs it to its end in `place`; raises UsageError, in its last words, for a bad one."""
    job = Job(
        name=harness.module,
        argv=(sys.executable, "-c", _START, str(place / "task"), harness.module, *arguments),
        folder=place,
        env={**environment(place), **env},
        limits=Limits(seconds=seconds, silent_s=0.0),
    )
    ended = LocalJobs().run(job, lambda _: None)
    if ended.outcome != "done":
        raise UsageError(f"{harness.module} {_why(ended)}", hint="does the task run by itself?")


def environment(place: Path) -> dict[str, str]:
    """Returns the environment of a harness: nothing of ours but where programs are."""
    kept = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    fixed = dict.fromkeys(_OFFLINE, "1") | {
        "HOME": str(place / "home"), "HF_HOME": str(place / "home" / "hf"), "NO_PROXY": "*",
        "TMPDIR": str(place / "tmp"), "TOKENIZERS_PARALLELISM": "false", "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    return kept | fixed


def _why(ended: Ended) -> str:
    said = [line for line in ended.log.splitlines() if line.strip()]
    last = f"; the last it said: {said[-1].strip()[:300]}" if said else ""
    reason = ended.reason if ended.outcome != "failed" else "failed"
    return f"gave no answer: {reason}{last}"


def written(place: Path, pattern: str) -> Path:
    """Returns the one file below `out` that it wrote by that name; raises UsageError."""
    found = [path for path in sorted((place / "out").rglob(pattern)) if path.is_file()]
    if len(found) != 1 or found[0].stat().st_size > _MOST_BYTES:
        raise UsageError(f"the harness left {len(found)} files {pattern}, not one of sound size")
    return found[0]


def read_json(path: Path) -> Mapping[str, Any]:
    """Returns the JSON object of a file; raises UsageError."""
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path.name} of the harness is no JSON: {str(error)[:120]}") from error
    if not isinstance(found, dict):
        raise UsageError(f"{path.name} of the harness is no JSON object")
    return found
