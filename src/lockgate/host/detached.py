"""A process that does not notice when its starter dies, and that the next starter can adopt.

Alive means: the lock on its lock file is held. The launcher inherits the lock as a descriptor,
writes its pid into the file, and becomes the program by exec; so the lock lives exactly as long as
the program (and what it forked), whoever started it, and a pid is never trusted alone. The program
runs in a session of its own and writes to a file, never to a pipe of ours.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_LAUNCHER = """
import os, resource, sys
fd, memory, files = (int(text) for text in sys.argv[1:4])
os.ftruncate(fd, 0)
os.pwrite(fd, str(os.getpid()).encode(), 0)
if memory:
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
if files:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = files if hard == resource.RLIM_INFINITY else min(files, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
os.execvp(sys.argv[4], sys.argv[4:])
"""
_LOG_MAX = 16 << 20
_PID_TRIES = 50
_PID_PAUSE_S = 0.02


class Lock:
    """An exclusive lock on a file, held until `release` or the end of the process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.fd: int | None = None

    def take(self, *, shared: bool = False) -> bool:
        """Takes the lock; returns False when somebody holds it. Probes share, owners do not."""
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        self.fd = fd
        return True

    def release(self) -> None:
        """Lets go of our descriptor; a child that inherited it keeps the lock."""
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None


class Detached:
    """One program over one lock file and one log file: started once, adopted ever after."""

    def __init__(self, *, lock: Path, log: Path) -> None:
        self._lock_path = lock
        self._log_path = log
        self._child: subprocess.Popen[bytes] | None = None

    def start(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        folder: Path | None = None,
        memory_bytes: int = 0,
        open_files: int = 0,
    ) -> bool:
        """Starts `argv` unless it runs already; returns whether it was started.

        `env` replaces the environment, `memory_bytes` (0: none) limits the address space,
        `open_files` (0: leave it) raises the soft limit of descriptors as far as it may. Raises
        OSError when the launcher can't be run; a program that can't says so in the log.
        """
        lock = Lock(self._lock_path)
        if not lock.take() or lock.fd is None:
            return False
        os.ftruncate(lock.fd, 0)  # until the launcher wrote the new pid nobody reads the old one
        limits = [str(lock.fd), str(memory_bytes), str(open_files)]
        launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, *limits]
        try:
            self._turn_log()
            with self._log_path.open("ab") as log:
                self._child = subprocess.Popen(
                    [*launcher, *argv],
                    pass_fds=(lock.fd,),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=None if env is None else dict(env),
                    cwd=folder,
                    start_new_session=True,
                )
        finally:
            lock.release()
        return True

    def _turn_log(self) -> None:
        """Puts a log that has grown too long aside, keeping one."""
        if self._log_path.exists() and self._log_path.stat().st_size > _LOG_MAX:
            self._log_path.replace(self._log_path.with_name(self._log_path.name + ".1"))

    def alive(self) -> bool:
        """Says whether the program runs."""
        if self._child is not None and self._child.poll() is not None:
            self._child = None
        lock = Lock(self._lock_path)
        try:
            free = lock.take(shared=True)
        except FileNotFoundError:
            return False
        lock.release()
        return not free

    def pid(self) -> int | None:
        """Returns the program's process id, None when it does not run."""
        for _ in range(_PID_TRIES):
            if not self.alive():
                return None
            text = self._lock_path.read_text()
            if text.isdigit():
                return int(text)
            time.sleep(_PID_PAUSE_S)
        return None

    def signal(self, number: int, *, group: bool = False) -> None:
        """Sends a signal to the program, or to its whole session; nothing when it is gone."""
        pid = self.pid()
        if pid is None:
            return
        with suppress(ProcessLookupError):
            if group:
                os.killpg(pid, number)
            else:
                os.kill(pid, number)

    def wait(self, seconds: float) -> bool:
        """Waits up to `seconds` for the program to end; says whether it has."""
        deadline = time.monotonic() + seconds
        while self.alive():
            if time.monotonic() >= deadline:
                return False
            time.sleep(_PID_PAUSE_S)
        return True

    def stop(self, patience: float) -> bool:
        """SIGTERM, `patience` seconds, then SIGKILL to the session; True if it ended by itself."""
        self.signal(signal.SIGTERM)
        if self.wait(patience):
            return True
        self.kill()
        return False

    def kill(self) -> None:
        """SIGKILL to the whole session, and waits until it is gone."""
        self.signal(signal.SIGKILL, group=True)
        self.wait(5.0)

    def log_tail(self, lines: int = 10) -> str:
        """Returns the last lines of the log, 8 KiB at most."""
        try:
            with self._log_path.open("rb") as log:
                log.seek(max(0, self._log_path.stat().st_size - 8192))
                text = log.read().decode("utf-8", errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])
