"""The process of one step: reads what to do, does it, and says how far it is.

    python -m lockgate.derive.child JOB.json

Lines of JSON on stdout (`done`, `total`, `unit`, `metrics`, or `log`). At the end `result.json` in
the job's folder, whole or not there: the metrics, or the error in the form of the wire.
"""

from __future__ import annotations

import json
import math
import os
import stat
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from lockgate.core.errors import LockgateError, StepFailedError
from lockgate.derive.api import Advance, Work
from lockgate.derive.find import find_step
from lockgate.host import trees
from lockgate.store.durable import sync_folder, write_durably

RESULT = "result.json"
_EVERY_S = 0.1
_DEEPEST = 100
_MOST_METRICS = 1000
_NAME = 200
_ODD = (
    (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)  # fmt: skip


def main() -> int:
    """Runs the step of the first argument; returns the exit code."""
    asked = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    folder = Path(sys.argv[1]).parent
    out = _own_stdout()
    try:
        metrics = _run(asked, folder, Teller(out))
        result: dict[str, Any] = {"metrics": metrics}
    except LockgateError as error:
        result = {"error": {"code": error.code, "message": error.message, "hint": error.hint}}
    except Exception as error:  # noqa: BLE001 - a step is anybody's code
        traceback.print_exc()
        result = {"error": _unforeseen(asked["step"], error)}
    write_durably(folder / RESULT, json.dumps(result).encode(), folder)
    return 1 if "error" in result else 0


def _own_stdout() -> TextIO:
    """Takes stdout for ourselves; what a library prints goes to stderr, the log."""
    ours = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    return ours


def _run(asked: Mapping[str, Any], folder: Path, teller: Teller) -> dict[str, float]:
    step = find_step(asked["step"])
    work = Work(
        inputs={name: [Path(path) for path in paths] for name, paths in asked["inputs"].items()},
        out=folder / "out",
        scratch=folder / "scratch",
        parameters=step.parameters.model_validate(asked["parameters"]),
        seed=asked["seed"],
        report=teller.report,
        log=teller.log,
    )
    metrics = _checked(step.name, step.run(work))
    _check_output(step.name, work.out)
    sync_tree(work.out)
    return metrics


def _checked(step: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """Returns the metrics; raises StepFailedError for what can't be kept as a number by a name."""
    if len(metrics) > _MOST_METRICS:
        raise StepFailedError(
            f"{step} gave {len(metrics)} metrics, at most {_MOST_METRICS} are kept",
            hint="write the rest into a file of the version",
        )
    for name, value in metrics.items():
        if not name.isprintable() or not 0 < len(name) <= _NAME:
            raise StepFailedError(
                f"{step} gave a metric with the name {ascii(name)[:_NAME]}",
                hint=f"a name has 1 to {_NAME} printable characters",
            )
        if not math.isfinite(value):
            raise StepFailedError(
                f"{step} gave a metric that is no number: {name!r} is {value}",
                hint="did it diverge? what makes a version ends with finite metrics",
            )
    return {name: float(value) for name, value in metrics.items()}


def _check_output(step: str, out: Path) -> None:
    """Raises StepFailedError for what can't be part of a version: pipes, devices, great depth."""
    if out.is_symlink() or not out.is_dir():
        raise StepFailedError(
            f"{step} put something else in the place of its output folder",
            hint="what it makes belongs into the folder that is there",
        )
    for depth, entry in trees.walk(out):
        name = ascii(os.path.relpath(entry.path, out))[:_NAME]
        if depth > _DEEPEST:
            raise StepFailedError(f"{step} left folders more than {_DEEPEST} folders deep")
        mode = entry.stat(follow_symlinks=False).st_mode
        for test, kind in _ODD:
            if test(mode):
                raise StepFailedError(
                    f"{step} left {kind} in its output: {name}", hint="a version is made of files"
                )


def _unforeseen(step: str, error: Exception) -> dict[str, object]:
    if isinstance(error, MemoryError):
        return {"code": "usage", "message": f"{step} ran out of memory", "hint": None}
    text = str(error).strip().splitlines()
    said = f"{type(error).__name__}: {text[0][:500] if text else ''}"
    return {"code": "error", "message": f"{step} failed: {said}", "hint": None}


def sync_tree(folder: Path) -> None:
    """Makes all that is below `folder` durable. Raises OSError."""
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root) / name
            if path.is_symlink():
                continue
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        sync_folder(Path(root))


class Teller:
    """Writes progress, ten lines a second at most."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._lock = threading.Lock()
        self._last = 0.0

    def report(self, advance: Advance) -> None:
        """Says how far the step is."""
        now = time.monotonic()
        often = now - self._last < _EVERY_S and advance.metrics is None
        if often and advance.done != advance.total:
            return
        self._last = now
        self._write({"done": advance.done, "total": advance.total, "unit": advance.unit,
                     "metrics": dict(advance.metrics or {})})  # fmt: skip

    def log(self, line: str) -> None:
        """Keeps a line for people, in the log too."""
        sys.stderr.write(line + "\n")
        self._write({"log": line})

    def _write(self, body: Mapping[str, Any]) -> None:
        with self._lock:
            self._out.write(json.dumps(body) + "\n")


if __name__ == "__main__":
    sys.exit(main())
