"""The warden of one job: a small process between lockgate and a program that it does not trust.

    python -m lockgate.host.jobs.warden '{"argv": […], "limits": {…}, "report": FD}'

It starts the program, adopts whatever that forks (also what was made to outlive its parent), looks
twenty times a second at how much all of them take, and kills them all when one limit is passed, or
when its own stdin ends: so a `kill -9` of lockgate ends the job too. The last thing it writes, as
JSON to the descriptor `report`, is how the job ended. Linux only; it loads next to nothing.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from lockgate.host.trees import taken_bytes

_SUBREAPER, _DEATH_SIGNAL = 36, 1
_LOOK_S = 0.05
_DISK_LOOK_S = 1.0
_PAGE = os.sysconf("SC_PAGE_SIZE")
Found = tuple[str, str]


def main() -> None:
    """Runs the job of the first argument."""
    asked = json.loads(sys.argv[1])
    prctl(_SUBREAPER, 1)
    began = time.monotonic()
    child = subprocess.Popen(
        asked["argv"], stdin=subprocess.DEVNULL, start_new_session=True,
        preexec_fn=lambda: _prepare(asked["limits"]),  # noqa: PLW1509 - there is one thread
    )  # fmt: skip
    watch = Watch(asked["limits"], Path.cwd(), began)
    outcome, reason = watch.until_the_end_of(child)
    end_all()
    report = {
        "outcome": outcome, "reason": reason, "code": child.returncode,
        "seconds": time.monotonic() - began, "peak_bytes": watch.peak,
    }  # fmt: skip
    with os.fdopen(asked["report"], "w") as file:
        json.dump(report, file)


def prctl(option: int, value: int) -> None:
    """Sets one of the kernel's options of this process; raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def _prepare(limits: dict[str, Any]) -> None:
    prctl(_DEATH_SIGNAL, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if limits["disk_bytes"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limits["disk_bytes"],) * 2)


class Watch:
    """Looks at a job's processes; `peak` is the most memory that they had, in bytes."""

    def __init__(self, limits: dict[str, Any], folder: Path, began: float) -> None:
        self._limits = limits
        self._folder = folder
        self._began = began
        self._next_disk = began + _DISK_LOOK_S
        self.peak = 0

    def until_the_end_of(self, child: subprocess.Popen[bytes]) -> Found:
        """Returns the outcome and the reason when the job ended or passed a limit."""
        while True:
            passed = self._passed()
            if passed:
                return passed
            if child.poll() is not None:
                return self._ended(child.returncode)
            if select.select([sys.stdin], [], [], _LOOK_S)[0] and not os.read(0, 1):
                return "cancelled", "it was cancelled"

    def _ended(self, code: int) -> Found:
        if code == 0:
            return "done", "it is done"
        if code == -signal.SIGXFSZ:
            return "disk", f"it wrote more than {self._limits['disk_bytes']:,} bytes"
        if code < 0:
            return "failed", f"it was ended by {signal.Signals(-code).name}"
        return "failed", f"it ended with exit code {code}"

    def _passed(self) -> Found | None:
        limits, now = self._limits, time.monotonic()
        family = list(descendants())
        if 0 < limits["processes"] < len(family):
            return "processes", f"it had more than {limits['processes']} processes at once"
        used = sum(resident(pid) for pid in family)
        if 0 < limits["memory_bytes"] < used:
            used = sum(proportional(pid) for pid in family)  # what is shared counts once
        self.peak = max(self.peak, used)
        if 0 < limits["memory_bytes"] < used:
            return "memory", f"it took more than {limits['memory_bytes']:,} bytes of memory"
        if 0 < limits["seconds"] < now - self._began:
            return "timeout", f"it took longer than {limits['seconds']:g} s"
        if limits["disk_bytes"] and now >= self._next_disk:
            taken = taken_bytes(self._folder)
            self._next_disk = time.monotonic() + max(_DISK_LOOK_S, 10 * (time.monotonic() - now))
            if taken > limits["disk_bytes"]:
                return "disk", f"it wrote more than {limits['disk_bytes']:,} bytes"
        return None


def descendants(root: int | None = None) -> Iterator[int]:
    """Yields the process ids below `root` (this process), zombies left out."""
    parents: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with suppress(OSError, ValueError):
                fields = _stat(entry.name)
                if fields[0] != "Z":
                    parents.setdefault(int(fields[1]), []).append(int(entry.name))
    level = [root or os.getpid()]
    while level:
        level = [child for pid in level for child in parents.get(pid, ())]
        yield from level


def _stat(pid: str) -> list[str]:
    with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - looked at often
        return file.read().decode("ascii", "replace").rpartition(")")[2].split()


def resident(pid: int) -> int:
    """Returns a process's resident bytes; 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:  # noqa: PTH123 - looked at often
            return int(file.read().split()[1]) * _PAGE
    except (OSError, IndexError, ValueError):
        return 0


def proportional(pid: int) -> int:
    """Returns a process's resident bytes, shared ones divided by who shares them."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except (OSError, IndexError, ValueError):
        return 0
    return resident(pid)


def end_all() -> None:
    """Kills every descendant; stops them first, so that none forks while others are killed."""
    while family := list(descendants()):
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in family:
                with suppress(OSError):
                    os.kill(pid, number)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.005)


if __name__ == "__main__":
    main()
