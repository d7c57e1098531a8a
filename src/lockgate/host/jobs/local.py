"""Jobs on this machine, each under a warden of its own."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

from lockgate.core.errors import PermanentError
from lockgate.host.jobs.api import Ended, Job
from lockgate.host.jobs.warden import descendants, resident

_LOOK_S = 0.2
_LOG_SHOWN = 16_384
_LINE_MAX = 1 << 20
LOG = "log.txt"
PID = "warden.pid"


class LocalJobs:
    """Runs each job in a child process, under a warden that ends it with us."""

    def run(
        self, job: Job, hear: Callable[[str], None], cancelled: Callable[[], bool] = lambda: False
    ) -> Ended:
        """See `Jobs.run`. What the job writes to stderr is in `log.txt` in its folder."""
        began = time.monotonic()
        with (job.folder / LOG).open("ab") as log:
            reader, writer = os.pipe()
            try:
                warden = self._start(job, log.fileno(), writer)
            except OSError as error:
                os.close(reader)
                raise PermanentError(f"{job.name} can't be started: {error.strerror}") from error
            finally:
                os.close(writer)
            (job.folder / PID).write_text(str(warden.pid))
            with os.fdopen(reader, "rb") as report:
                try:
                    silent = _Listener(warden, job.limits.silent_s, hear, cancelled).listen()
                finally:
                    self._let_go(warden)
                text = report.read()
        if not text:
            _end_orphans(job.folder)
        return self._ended(job, text, silent, time.monotonic() - began)

    def _start(self, job: Job, log: int, writer: int) -> subprocess.Popen[bytes]:
        asked = {"argv": job.argv, "limits": asdict(job.limits), "report": writer}
        return subprocess.Popen(
            [sys.executable, "-m", "lockgate.host.jobs.warden", json.dumps(asked)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, pass_fds=(writer,),
            cwd=job.folder, env=dict(job.env), start_new_session=True,
        )  # fmt: skip

    def _let_go(self, warden: subprocess.Popen[bytes]) -> None:
        """Ends the job, if it has not ended, and waits until nothing of it is left."""
        with suppress(OSError):
            if warden.stdin is not None:
                warden.stdin.close()
        warden.wait()
        if warden.stdout is not None:
            warden.stdout.close()

    def _ended(self, job: Job, report: bytes, silent: bool, seconds: float) -> Ended:
        log = tail(job.folder / LOG)
        try:
            ended = Ended(**json.loads(report), log=log)
        except (ValueError, TypeError):
            return Ended(
                outcome="failed", reason="its warden was killed", code=None, seconds=seconds,
                peak_bytes=0, log=log,
            )  # fmt: skip
        if silent and ended.outcome == "cancelled":
            reason = f"it gave no sign of life for {job.limits.silent_s:g} s"
            return replace(ended, outcome="silent", reason=reason)
        return ended


class _Listener:
    """Hands on what a job says, until its warden ends or it has to."""

    def __init__(
        self, warden: subprocess.Popen[bytes], silent_s: float, hear: Callable[[str], None],
        cancelled: Callable[[], bool],
    ) -> None:  # fmt: skip
        self._warden = warden
        self._silent_s = silent_s
        self._hear = hear
        self._cancelled = cancelled
        self._rest = b""

    def listen(self) -> bool:
        """Returns when it is over; True when it is so because the job said nothing."""
        stream = self._warden.stdout
        if stream is None:
            return False
        last = time.monotonic()
        while True:
            if select.select([stream], [], [], _LOOK_S)[0]:
                data = os.read(stream.fileno(), 65_536)
                if not data:
                    self._split(b"\n" if self._rest else b"")
                    return False
                last = time.monotonic()
                self._split(data)
            elif self._warden.poll() is not None:
                return False  # it was killed, and what it watched has the other end
            if self._cancelled():
                return False
            if 0 < self._silent_s < time.monotonic() - last:
                return True

    def _split(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._rest = self._rest[-_LINE_MAX:]
        for line in lines:
            self._hear(line.decode("utf-8", errors="replace"))


def _end_orphans(folder: Path) -> None:
    """Kills what a killed warden left: processes in whose environment the job's folder stands."""
    mark = os.fsencode(folder)
    while found := [pid for pid in _running() if pid != os.getpid() and mark in _environment(pid)]:
        for pid in found:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _running() -> list[int]:
    return [int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit()]


def _environment(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def memory_of(folder: Path) -> int:
    """Returns the resident bytes that the job in `folder` has now; 0 when none runs."""
    try:
        pid = int((folder / PID).read_text())
    except (OSError, ValueError):
        return 0
    return sum(resident(child) for child in descendants(pid))


def tail(path: Path) -> str:
    """Returns the end of a log, 16 KiB at most."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LOG_SHOWN))
            return file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
