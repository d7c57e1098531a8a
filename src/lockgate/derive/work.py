"""Where steps work: a folder for each recipe, inputs restored once, a child process for each step.

A recipe's folder outlives a killed run, so that the next one goes on: `job.json` says what is
done, `scratch` is the step's own, `out` becomes the version, `result.json` is there once the step
has ended. When the version is recorded, the folder goes.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lockgate.core.digests import Digest, hex_of
from lockgate.core.errors import (
    ConflictError,
    PermanentError,
    StepFailedError,
    error_class,
)
from lockgate.core.units import size
from lockgate.derive.api import Advance, Outside
from lockgate.derive.child import RESULT
from lockgate.derive.connections import connections, hidden, secrets_in
from lockgate.derive.recipe import Recipe
from lockgate.host.detached import Lock
from lockgate.host.jobs.api import Ended, Job, Jobs, Limits
from lockgate.host.jobs.local import LOG
from lockgate.registry.manifest import parse
from lockgate.registry.restore import restore
from lockgate.store.api import Objects, Report
from lockgate.store.durable import write_durably

_PASSED_ON = (
    "PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "CUDA_VISIBLE_DEVICES",
    "PYTHONPATH",
)  # fmt: skip
_LIMIT_HINTS = {
    "memory": "--memory allows more",
    "disk": "--disk allows more",
    "timeout": "--timeout allows more; what it kept in its scratch folder is used again",
    "silent": "a step that works says so; --silent allows longer silence",
    "processes": "is it a fork bomb? no step needs that many",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What a step said: how far it is, or a line for people."""

    step: str
    advance: Advance | None = None
    line: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What running a recipe gave: the folder of the version to be, and what it took."""

    out: Path
    metrics: Mapping[str, float]
    seconds: float
    peak_bytes: int
    log: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Workplace:
    """A folder to work in, what runs jobs there, and where inputs come from.

    `hear` gets what steps say, `report` how restoring and publishing go on; `cancelled` is asked
    while a step runs.
    """

    folder: Path
    jobs: Jobs
    objects: Objects
    hear: Callable[[Heard], None] = field(default=lambda _: None)
    report: Report | None = None
    cancelled: Callable[[], bool] = field(default=lambda: False)

    @contextmanager
    def claim(self, name: str) -> Iterator[Path]:
        """Gives a folder to one run at a time; raises ConflictError while another one has it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = Lock(self.folder / f"{name}.lock")
        if not lock.take():
            raise ConflictError("this very step is being run already", hint="wait for it")
        try:
            folder = self.folder / name
            folder.mkdir(exist_ok=True)
            yield folder
        finally:
            lock.release()

    def run(
        self, recipe: Recipe, parameters: Mapping[str, Any], folder: Path, limits: Limits,
        outside: Outside | None = None,
    ) -> Ran:  # fmt: skip
        """Runs `recipe` in `folder`, unless it ended there before; `parameters` as the step gets.

        What is not pinned in `outside` is looked at again. Raises the error that the step raised,
        StepFailedError for a limit or an end without a word, UsageError for a connection that is
        not set.
        """
        outside = outside or Outside()
        secrets = secrets_in(outside.connections)
        took: dict[str, Any] = {"seconds": 0.0, "peak_bytes": 0}
        if not outside.pinned:
            (folder / RESULT).unlink(missing_ok=True)
        if not (folder / RESULT).exists():
            ended = self._run_job(recipe, parameters, folder, limits, outside)
            took = {"seconds": ended.seconds, "peak_bytes": ended.peak_bytes}
            if ended.outcome != "done" and not (folder / RESULT).exists():
                raise self._stopped(recipe, ended, folder, secrets)
        result = json.loads((folder / RESULT).read_text("utf-8"))
        if "error" in result:
            (folder / RESULT).unlink()
            error = result["error"]
            kind = error_class(error["code"])
            failed = kind if kind.code != "error" else StepFailedError
            hint = hidden(error["hint"] or f"its log: {folder / LOG}", secrets)
            raise failed(hidden(error["message"], secrets), hint=hint)
        return Ran(
            out=folder / "out", metrics=result["metrics"], log=hidden(_said(folder), secrets),
            **took,
        )  # fmt: skip

    def _run_job(
        self, recipe: Recipe, parameters: Mapping[str, Any], folder: Path, limits: Limits,
        outside: Outside,
    ) -> Ended:  # fmt: skip
        env = self.environment(folder, recipe.threads) | connections(outside.connections)
        secrets = secrets_in(outside.connections)
        inputs: dict[str, list[str]] = {}
        for given in recipe.inputs:
            inputs.setdefault(given.name, []).append(str(self.input(given.digest)))
        shutil.rmtree(folder / "out", ignore_errors=True)
        for name in ("out", "scratch", "tmp"):
            (folder / name).mkdir(exist_ok=True)
        (folder / LOG).unlink(missing_ok=True)
        asked = {"step": recipe.step, "parameters": parameters, "seed": recipe.seed,
                 "inputs": inputs}  # fmt: skip
        write_durably(folder / "job.json", json.dumps(asked).encode(), folder)
        before = {path: _stamps(Path(path)) for paths in inputs.values() for path in paths}
        job = Job(
            name=f"{recipe.step} {hex_of(recipe.digest)[:12]}",
            argv=(sys.executable, "-m", "lockgate.derive.child", str(folder / "job.json")),
            folder=folder,
            env=env,
            limits=limits,
        )
        ended = self.jobs.run(
            job, lambda line: self._hear(recipe.step, hidden(line, secrets)), self.cancelled
        )
        changed = [path for path, stamps in before.items() if _stamps(Path(path)) != stamps]
        for path in changed:
            shutil.rmtree(path, ignore_errors=True)
        if changed:
            (folder / RESULT).unlink(missing_ok=True)
            raise StepFailedError(
                f"{recipe.step} changed files of its inputs; what it made is not kept",
                hint="a step reads its inputs and writes to `out` and `scratch`",
            )
        return ended

    def _hear(self, step: str, line: str) -> None:
        try:
            said = json.loads(line)
            if "log" in said:
                self.hear(Heard(step=step, line=str(said["log"])[:2000]))
                return
            advance = Advance(
                done=float(said["done"]), total=float(said["total"]), unit=str(said["unit"]),
                metrics=dict(said["metrics"]),
            )  # fmt: skip
        except (ValueError, TypeError, KeyError):
            return
        self.hear(Heard(step=step, advance=advance))

    def _stopped(
        self, recipe: Recipe, ended: Ended, folder: Path, secrets: Sequence[str]
    ) -> StepFailedError:
        shutil.rmtree(folder / "out", ignore_errors=True)
        if ended.outcome in ("disk", "processes"):
            shutil.rmtree(folder, ignore_errors=True)
        last = hidden(ended.log, secrets).strip().splitlines()
        said = f"; the last it said: {last[-1][:300]}" if last else ""
        taken = f" (it had taken {size(ended.peak_bytes)})" if ended.outcome == "timeout" else ""
        return StepFailedError(
            f"{recipe.step} was stopped: {ended.reason}{taken}{said}",
            hint=_LIMIT_HINTS.get(ended.outcome, f"its log: {folder / LOG}"),
        )

    def input(self, digest: str) -> Path:
        """Returns the folder of an input, restored if it is not here."""
        folder = self.folder / "inputs" / hex_of(Digest(digest))[:32]
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            manifest = parse(bytes(self.objects.get(Digest(digest))))
            try:
                restore(manifest, folder, self.objects, self.report)
            except (ConflictError, PermanentError):
                if not folder.exists():  # another run beside this one was not faster
                    raise
        return folder

    def environment(self, folder: Path, threads: int) -> dict[str, str]:
        """Returns a job's environment: no tokens, no hubs, a fixed number of threads."""
        fixed: dict[str, str] = dict.fromkeys(
            ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads)
        )
        fixed |= {
            "PYTHONHASHSEED": "0", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
            "TMPDIR": str(folder / "tmp"), "PYTHONUNBUFFERED": "1",
        }  # fmt: skip
        return {name: os.environ[name] for name in _PASSED_ON if name in os.environ} | fixed

    def tidy(self) -> None:
        """Removes the restored inputs, unless another run beside this one may need them."""
        if not any(self.folder.glob("*/job.json")):
            shutil.rmtree(self.folder / "inputs", ignore_errors=True)


def _said(folder: Path) -> str:
    try:
        return (folder / LOG).read_bytes()[-16_384:].decode("utf-8", errors="replace")
    except OSError:
        return ""


Stamp = tuple[str, int, int, int]


def _stamps(folder: Path) -> set[Stamp]:
    """Returns what tells whether files below `folder` were changed."""
    found: set[Stamp] = set()
    for root, _, names in os.walk(folder):
        for name in names:
            about = os.lstat(f"{root}/{name}")
            found.add((f"{root}/{name}", about.st_size, about.st_mtime_ns, about.st_ino))
    return found
