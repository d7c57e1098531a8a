"""The process of one step: reads what to do, does it, and says how far it is.

    python -m lockgate.derive.child JOB.json

Lines of JSON on stdout (`done`, `total`, `unit`, `metrics`, or `log`). At the end `result.json` in
the job's folder, whole or not there: the metrics, or the error in the form of the wire.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from lockgate.core.errors import LockgateError
from lockgate.derive.api import Advance, Work
from lockgate.derive.find import find_step
from lockgate.store.durable import sync_folder, write_durably

RESULT = "result.json"
_EVERY_S = 0.1


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
    metrics = {name: float(value) for name, value in step.run(work).items()}
    sync_tree(work.out)
    return metrics


def _unforeseen(step: str, error: Exception) -> dict[str, object]:
    if isinstance(error, MemoryError):
        return {"code": "usage", "message": f"{step} ran out of memory", "hint": None}
    text = str(error).strip().splitlines()
    said = f"{type(error).__name__}: {text[0][:500] if text else ''}"
    return {"code": "error", "message": f"{step} failed: {said}", "hint": "its log says where"}


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
        """Keeps a line for people."""
        self._write({"log": line})

    def _write(self, body: Mapping[str, Any]) -> None:
        with self._lock:
            self._out.write(json.dumps(body) + "\n")


if __name__ == "__main__":
    sys.exit(main())
