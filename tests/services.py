"""Real servers on loopback for one test session, started and ended by it, and by its death."""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
from services import nats_program, postgres_programs  # noqa: E402

UNPACKED = Path(sys.prefix).parent / "services"
USER, PASSWORD = "reader", "s3cret/word"
WRITTEN = "s3cret%2Fword"
_PATIENCE_S = 60


def free_port() -> int:
    """Returns a loopback port that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def _as(account: pwd.struct_passwd | None) -> dict[str, Any]:
    if account is None:
        return {}
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def _die_with_us() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGQUIT, 0, 0, 0)


@contextmanager
def _process(
    argv: Sequence[str],
    log: Path,
    ready: Callable[[], bool],
    account: pwd.struct_passwd | None = None,
) -> Iterator[None]:  # fmt: skip
    """Runs a server until the block ends; waits until it is ready."""
    with log.open("ab") as out:
        server = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd="/",
            preexec_fn=_die_with_us, **_as(account),  # noqa: PLW1509 - no thread runs yet
        )  # fmt: skip
    try:
        until = time.monotonic() + _PATIENCE_S
        while not ready():
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.05)
        yield
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(_PATIENCE_S)


def answers(port: int) -> bool:
    """Says whether somebody accepts connections on a loopback port."""
    with socket.socket() as found:
        found.settimeout(1)
        return found.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def postgres_server() -> Iterator[str]:
    """Gives the address of a PostgreSQL with one user, a superuser with a password."""
    programs = postgres_programs()
    if programs is None:
        pytest.skip("no PostgreSQL server: initdb and postgres are not installed")
    account = None
    if os.geteuid() == 0:  # it refuses to run as root
        try:
            account = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("no PostgreSQL server: there is no account 'postgres' to run it as")
    folder = Path(tempfile.mkdtemp(prefix="lockgate-pg-"))
    try:
        secret = folder / "password"
        secret.write_text(PASSWORD)
        if account is not None:
            for path in (folder, secret):
                os.chown(path, account.pw_uid, account.pw_gid)
        subprocess.run(
            [programs / "initdb", "-D", folder / "data", "-U", USER, "-A", "scram-sha-256",
             "--pwfile", secret, "-E", "UTF8", "--locale", "C", "--no-sync"],
            check=True, capture_output=True, cwd="/", **_as(account),
        )  # fmt: skip
        port = free_port()
        settings = {"fsync": "off", "max_connections": "20", "shared_buffers": "16MB",
                    "unix_socket_directories": folder}  # fmt: skip
        options = [f"--{name}={value}" for name, value in settings.items()]
        argv = [str(programs / "postgres"), "-D", str(folder / "data"), "-h", "127.0.0.1",
                "-p", str(port), *options]  # fmt: skip
        log = folder / "log"
        with _process(argv, log, lambda: "ready to accept" in log.read_text(), account):
            yield f"postgresql://{USER}:{WRITTEN}@127.0.0.1:{port}/postgres"
    finally:
        shutil.rmtree(folder)


@contextmanager
def nats_server() -> Iterator[str]:
    """Gives the address of a NATS server with JetStream and one user with a password."""
    program = nats_program(UNPACKED)
    if program is None:
        pytest.skip("no NATS server: nats-server is not installed")
    folder = Path(tempfile.mkdtemp(prefix="lockgate-nats-"))
    try:
        port = free_port()
        config = folder / "nats.conf"
        config.write_text(
            f'listen: "127.0.0.1:{port}"\n'
            f'jetstream {{ store_dir: "{folder}/js", max_file_store: 1GB }}\n'
            f'authorization {{ user: "{USER}", password: "{PASSWORD}" }}\n'
        )
        argv = [str(program), "-c", str(config)]
        with _process(argv, folder / "log", lambda: answers(port)):
            yield f"nats://{USER}:{WRITTEN}@127.0.0.1:{port}"
    finally:
        shutil.rmtree(folder)
