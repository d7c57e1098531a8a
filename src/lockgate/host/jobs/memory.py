"""Jobs without processes: a function stands for the program. For tests of what runs jobs."""

from __future__ import annotations

from collections.abc import Callable

from lockgate.host.jobs.api import Ended, Job

Program = Callable[[Job, Callable[[str], None]], int]


class MemoryJobs:
    """Calls `program` with the job and what it says; its return value is the exit code."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self.ran: list[str] = []

    def run(
        self, job: Job, hear: Callable[[str], None], cancelled: Callable[[], bool] = lambda: False
    ) -> Ended:
        """See `Jobs.run`; limits do not bind a function."""
        self.ran.append(job.name)
        if cancelled():
            return self._ended("cancelled", "it was cancelled", None)
        try:
            code = self._program(job, hear)
        except MemoryError:
            return self._ended("memory", "it took more memory than there is", None)
        if code:
            return self._ended("failed", f"it ended with exit code {code}", code)
        return self._ended("done", "it is done", 0)

    def _ended(self, outcome: str, reason: str, code: int | None) -> Ended:
        return Ended(outcome=outcome, reason=reason, code=code, seconds=0.0, peak_bytes=0)  # type: ignore[arg-type]
