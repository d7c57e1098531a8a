"""Where steps work: a folder for each recipe, inputs restored once, a child process for each step.

A recipe's folder outlives a killed run, so that the next one goes on: `job.json` says what is
done, `scratch` is the step's own, `out` becomes the version, `result.json` is there once the step
has ended. When the version is recorded, the folder goes.
"""

from __future__ import annotations

import json
import os
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
from lockgate.host import trees
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
        if not outside.pinned or not _went_well(folder):
            (folder / RESULT).unlink(missing_ok=True)
        if not (folder / RESULT).exists():
            ended = self._run_job(recipe, parameters, folder, limits, outside)
            took = {"seconds": ended.seconds, "peak_bytes": ended.peak_bytes}
            if ended.outcome != "done" and not (folder / RESULT).exists():
                raise self._stopped(recipe, ended, folder, secrets)
        metrics = self._result(recipe, folder, secrets)
        return Ran(out=folder / "out", metrics=metrics, log=hidden(_said(folder), secrets), **took)

    def _result(self, recipe: Recipe, folder: Path, secrets: Sequence[str]) -> Mapping[str, float]:
        """Returns the metrics that a step ended with; raises the error that it ended with."""
        try:
            result = json.loads((folder / RESULT).read_text("utf-8"))
            if "metrics" in result:
                return {str(name): float(value) for name, value in result["metrics"].items()}
            code, message, hint = (result["error"][key] for key in ("code", "message", "hint"))
        except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
            (folder / RESULT).unlink(missing_ok=True)
            raise StepFailedError(
                f"what {recipe.step} left as its result can't be read",
                hint=f"its log: {folder / LOG}",
            ) from error
        (folder / RESULT).unlink()
        kind = error_class(code)
        failed = kind if kind.code != "error" else StepFailedError
        last = _said(folder).strip().splitlines()[-1:] if kind is StepFailedError else []
        said = f"; the last it said: {last[0][:300]}" if last and not hint else ""
        raise failed(
            hidden(f"{message}{said}", secrets),
            hint=hidden(hint or f"its log: {folder / LOG}", secrets),
        )

    def _run_job(
        self, recipe: Recipe, parameters: Mapping[str, Any], folder: Path, limits: Limits,
        outside: Outside,
    ) -> Ended:  # fmt: skip
        env = self.environment(folder, recipe.threads) | connections(outside.connections)
        secrets = secrets_in(outside.connections)
        inputs: dict[str, list[str]] = {}
        for given in recipe.inputs:
            inputs.setdefault(given.name, []).append(str(self.input(given.digest)))
        trees.remove(folder / "out")
        for name in ("out", "scratch", "tmp"):
            (folder / name).mkdir(exist_ok=True)
        (folder / LOG).unlink(missing_ok=True)
        asked = {"step": recipe.step, "parameters": parameters, "seed": recipe.seed,
                 "inputs": inputs}  # fmt: skip
        write_durably(folder / "job.json", json.dumps(asked).encode(), folder)
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
        restored = [Path(path) for paths in inputs.values() for path in paths]
        changed = [path for path in restored if not _untouched(path)]
        for path in changed:
            trees.remove(path)
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
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            return
        self.hear(Heard(step=step, advance=advance))

    def _stopped(
        self, recipe: Recipe, ended: Ended, folder: Path, secrets: Sequence[str]
    ) -> StepFailedError:
        trees.remove(folder / "out")
        if ended.outcome in ("disk", "processes"):
            trees.remove(folder)
        last = hidden(ended.log, secrets).strip().splitlines()
        said = f"; the last it said: {last[-1][:300]}" if last else ""
        taken = f" (it had taken {size(ended.peak_bytes)})" if ended.outcome == "timeout" else ""
        return StepFailedError(
            f"{recipe.step} was stopped: {ended.reason}{taken}{said}",
            hint=_LIMIT_HINTS.get(ended.outcome, f"its log: {folder / LOG}"),
        )

    def input(self, digest: str) -> Path:
        """Returns the folder of an input, restored if it is not here, or not as it was restored."""
        folder = self.folder / "inputs" / hex_of(Digest(digest))[:32]
        if folder.exists() and not _untouched(folder):
            trees.remove(folder)
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            _stamps_of(folder).unlink(missing_ok=True)
            manifest = parse(bytes(self.objects.get(Digest(digest))))
            try:
                restore(manifest, folder, self.objects, self.report)
            except (ConflictError, PermanentError):
                if not folder.exists():  # another run beside this one was not faster
                    raise
        if not _stamps_of(folder).exists():
            write_durably(_stamps_of(folder), _stamps(folder), folder.parent)
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
            trees.remove(self.folder / "inputs")


def _went_well(folder: Path) -> bool:
    """Returns whether a run that nobody heard the end of made something.

    An error of such a run is not believed: it may be that nobody listened.
    """
    try:
        return "metrics" in json.loads((folder / RESULT).read_bytes())
    except (OSError, ValueError, TypeError):
        return False


def _said(folder: Path) -> str:
    try:
        return (folder / LOG).read_bytes()[-16_384:].decode("utf-8", errors="replace")
    except OSError:
        return ""


def _stamps(folder: Path) -> bytes:
    """Returns what tells whether files below `folder` were changed.

    The time of the last change of a file's inode is in it: a program can't set that back.
    """
    found = []
    for _, entry in trees.walk(folder):
        about = entry.stat(follow_symlinks=False)
        if not entry.is_dir(follow_symlinks=False):
            found.append([entry.path, about.st_size, about.st_ctime_ns, about.st_ino])
    return json.dumps(sorted(found)).encode()


def _stamps_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.json")


def _untouched(folder: Path) -> bool:
    """Returns whether a restored input is as it was restored, as far as is known."""
    try:
        return _stamps_of(folder).read_bytes() == _stamps(folder)
    except FileNotFoundError:
        return True  # it was restored this moment, beside us
