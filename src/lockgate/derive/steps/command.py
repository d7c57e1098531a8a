"""A program of the user's own as a step: any language, no lockgate in it.

It finds what it needs in its environment (`LOCKGATE_OUT`, `LOCKGATE_SCRATCH`, `LOCKGATE_SEED`,
`LOCKGATE_PARAMETERS`, `LOCKGATE_INPUT_BASE`, …) and may print lines of JSON (`{"done": 3,
"total": 10, "metrics": {"loss": 0.4}}`); the last `metrics` are the version's.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from lockgate.core.errors import StepFailedError, UsageError
from lockgate.derive.api import Advance, Input, Metrics, Work

_LINE = 1 << 20  # bytes; what a longer line has behind them is left out


class CommandParameters(BaseModel):
    """What to run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    script: str = Field(description="the program's file; what it holds is part of the recipe")
    interpreter: tuple[str, ...] = Field(
        default=("python3",), description="what runs it; empty: the file itself"
    )
    arguments: tuple[str, ...] = Field(default=(), description="further arguments")
    settings: dict[str, Any] = Field(
        default_factory=dict, description="anything, as JSON in LOCKGATE_PARAMETERS"
    )


class Command:
    """Runs the user's program."""

    name = "command"
    summary = "Run a program of your own, a training script for one."
    inputs: ClassVar = (
        Input(name="base", relation="trained-from", required=False),
        Input(name="data", relation="trained-on", required=False, many=True),
    )
    parameters = CommandParameters
    libraries: tuple[str, ...] = ()
    deterministic = False

    def run(self, work: Work) -> Metrics:
        """Runs it in the scratch folder.

        Raises StepFailedError when it fails or leaves nothing, UsageError when it can't be run.
        """
        asked: CommandParameters = work.parameters
        script = Path(asked.script)
        if not script.is_file():
            raise UsageError(f"there is no file {script}", hint="name it as seen from here")
        argv = [*asked.interpreter, str(script), *asked.arguments]
        metrics: dict[str, float] = {}
        try:
            with subprocess.Popen(
                argv,
                stdout=subprocess.PIPE,
                env=self._environment(work),
                cwd=work.scratch,
            ) as program:
                for line in _lines(program.stdout):
                    metrics.update(_heard(line, work))
        except OSError as error:
            raise UsageError(f"{argv[0]} can't be run: {error.strerror}") from error
        if program.returncode:
            raise StepFailedError(f"{script.name} {_end(program.returncode)}")
        if work.out.is_dir() and not any(work.out.iterdir()):
            raise StepFailedError(
                f"{script.name} wrote nothing", hint="what it makes belongs into $LOCKGATE_OUT"
            )
        return metrics

    def _environment(self, work: Work) -> dict[str, str]:
        found = dict(os.environ)
        for name, folders in work.inputs.items():
            found[f"LOCKGATE_INPUT_{name.upper()}"] = os.pathsep.join(map(str, folders))
        found["LOCKGATE_OUT"] = str(work.out)
        found["LOCKGATE_SCRATCH"] = str(work.scratch)
        found["LOCKGATE_SEED"] = str(work.seed)
        found["LOCKGATE_PARAMETERS"] = json.dumps(work.parameters.settings)
        return found


def _end(code: int) -> str:
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def _lines(stream: IO[bytes] | None) -> Iterator[str]:
    """Yields what a program prints, line by line; of a long line its first MiB."""
    goes_on = False
    while stream is not None and (part := stream.readline(_LINE)):
        if not goes_on:
            yield part.decode("utf-8", errors="replace")
        goes_on = not part.endswith(b"\n")


def _heard(line: str, work: Work) -> dict[str, float]:
    """Hands on a line that the program printed; returns its metrics."""
    try:
        said = dict(json.loads(line))
        found = {str(k): float(v) for k, v in dict(said.get("metrics") or {}).items()}
        work.report(Advance(
            done=float(said.get("done", 0)), total=float(said.get("total", 0)),
            unit=str(said.get("unit", "steps")), metrics=found,
        ))  # fmt: skip
    except (ValueError, TypeError, OverflowError, RecursionError):
        work.log(line.rstrip()[:2000])
        return {}
    return found
