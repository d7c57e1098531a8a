"""Every error lockgate raises on purpose.

    LockgateError                       1
    ├── UsageError                      2
    │   └── SpecError                   2   all problems at once, each with path and line
    ├── NotFoundError                   3
    ├── ConflictError                   4   someone else moved first; re-plan
    ├── DeniedError                     5   policy said no; names the policy
    ├── IntegrityError                  6   digest or signature mismatch
    ├── GateRefusedError                10  carries verdicts
    │   └── RetrainError                15  what is refused would be let in after better training
    ├── RolledBackError                 11  carries the failing verdict
    ├── HeldError                       12  waiting: approval, or not enough traffic
    ├── DeadlineError                   13
    ├── StepFailedError                 14  a step ended badly, or took more than it may
    └── PortError                           raised by adapters only
        ├── TemporaryError(retry_in)    20
        └── PermanentError              21

The number is the exit code of the command line; `code` is the name on the wire.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar


class LockgateError(Exception):
    """A sentence that says what went wrong, and, in `hint`, what to do next."""

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "error"
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    @property
    def docs(self) -> str:
        """The anchor of this error in `docs/errors.md`."""
        return f"docs/errors.md#{self.code}"


class UsageError(LockgateError):
    """What the caller gave can't be used as it is."""

    exit_code = 2
    code = "usage"
    http_status = 422


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One mistake in a spec: where it is and what is wrong there."""

    path: str
    message: str
    line: int | None = None

    def __str__(self) -> str:
        where = f"line {self.line}, {self.path}" if self.line else self.path
        return f"{where}: {self.message}"


class SpecError(UsageError):
    """A spec has mistakes; `problems` holds all of them."""

    code = "spec"

    def __init__(self, problems: Sequence[Problem], *, hint: str | None = None) -> None:
        self.problems = tuple(problems)
        count = "one mistake" if len(self.problems) == 1 else f"{len(self.problems)} mistakes"
        lines = "\n".join(f"  {problem}" for problem in self.problems)
        super().__init__(f"the spec has {count}:\n{lines}", hint=hint)


class NotFoundError(LockgateError):
    """The named thing does not exist here."""

    exit_code = 3
    code = "not-found"
    http_status = 404


class ConflictError(LockgateError):
    """Someone else moved first, or the world is not what the caller assumed."""

    exit_code = 4
    code = "conflict"
    http_status = 409


class DeniedError(LockgateError):
    """A policy said no."""

    exit_code = 5
    code = "denied"
    http_status = 403


class IntegrityError(LockgateError):
    """Bytes are not what their digest, header or chain says they are."""

    exit_code = 6
    code = "integrity"
    http_status = 422


class GateRefusedError(LockgateError):
    """A gate refused the version."""

    exit_code = 10
    code = "gate-refused"
    http_status = 409


class RetrainError(GateRefusedError):
    """A gate refused the version, and says what training would have to reach."""

    exit_code = 15
    code = "retrain"


class RolledBackError(LockgateError):
    """The release was rolled back."""

    exit_code = 11
    code = "rolled-back"
    http_status = 409


class HeldError(LockgateError):
    """The release waits: for an approval, or for more traffic."""

    exit_code = 12
    code = "held"
    http_status = 409


class DeadlineError(LockgateError):
    """The time allowed for this ran out."""

    exit_code = 13
    code = "deadline"
    http_status = 504


class StepFailedError(LockgateError):
    """A step failed, or was stopped at a limit; no version was made."""

    exit_code = 14
    code = "step-failed"
    http_status = 422


class PortError(LockgateError):
    """An adapter (store, fleet, gateway, …) could not do what it was asked. Adapters only."""

    exit_code = 21
    code = "port"
    http_status = 502


class TemporaryError(PortError):
    """Worth trying again, after about `retry_in` seconds."""

    exit_code = 20
    code = "temporary"
    http_status = 503

    def __init__(self, message: str, *, retry_in: float = 1.0, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_in = retry_in


class PermanentError(PortError):
    """Trying again with the same input will not help."""

    exit_code = 21
    code = "permanent"


def error_classes(root: type[LockgateError] = LockgateError) -> Iterator[type[LockgateError]]:
    """Yields `root` and every error below it, in the order of the tree above."""
    yield root
    for child in root.__subclasses__():
        yield from error_classes(child)


def error_class(code: str) -> type[LockgateError]:
    """Returns the class whose wire name is `code`; `LockgateError` for a name not known here."""
    return next((cls for cls in error_classes() if cls.code == code), LockgateError)
