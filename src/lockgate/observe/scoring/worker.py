"""Scoring in a process of its own: what an answer does to a pattern or a schema hurts nobody else.

Lines of JSON go in (`definition`, `request`, `response`) and come out (`score`, or `error`). A
worker that does not answer in time is killed, and another one starts with the next answer.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from lockgate.core.errors import TemporaryError
from lockgate.observe.scoring.api import Scorer, exchange
from lockgate.observe.scoring.make import make_scorer

_PATIENCE_S = 10.0
_GRADER_S = 90.0


class Worker:
    """One such process; for one thread."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def score(
        self, definition: Mapping[str, Any], request: Mapping[str, Any],
        response: Mapping[str, Any],
    ) -> float | None:  # fmt: skip
        """Returns the score; raises TemporaryError when there is none to be had."""
        asked = {"definition": definition, "request": request, "response": response}
        patience = _GRADER_S if definition.get("kind") == "grader" else _PATIENCE_S
        try:
            line = self._ask(json.dumps(asked).encode() + b"\n", patience)
            answer = json.loads(line)
        except (OSError, ValueError) as error:
            self.close()
            raise TemporaryError(f"its process ended: {error}") from error
        if "error" in answer:
            raise TemporaryError(str(answer["error"]))
        score: float | None = answer["score"]
        return score

    def _ask(self, line: bytes, patience: float) -> bytes:
        process = self._process or self._start()
        if process.stdin is None or process.stdout is None:
            raise OSError("it has no pipes")
        process.stdin.write(line)
        process.stdin.flush()
        if not select.select([process.stdout], [], [], patience)[0]:
            self.close()
            raise TemporaryError(f"it took longer than {patience:g} s")
        return process.stdout.readline()

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start(self) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lockgate.observe.scoring.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        return self._process


def main() -> None:
    """Scores until its input ends."""
    made: dict[str, Scorer] = {}
    for line in sys.stdin.buffer:
        asked = json.loads(line)
        try:
            key = json.dumps(asked["definition"], sort_keys=True)
            if key not in made:
                made[key] = make_scorer(asked["definition"])
            score = made[key].score(exchange(asked["request"], asked["response"]))
            answer: dict[str, Any] = {"score": score}
        except Exception as error:  # noqa: BLE001 - whatever it is, the next answer is another one
            answer = {"error": f"{type(error).__name__}: {error}"[:500]}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
