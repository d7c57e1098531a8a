"""`lockgate serve`: one process, one home folder, until a signal ends it."""

from __future__ import annotations

import json
import logging
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import uvicorn

from lockgate.core.errors import UsageError
from lockgate.host.memory import keep_freed_memory
from lockgate.server.app import create_app
from lockgate.server.config import Settings
from lockgate.server.wiring import Control, near_store
from lockgate.store.durable import write_durably

SERVER_FILE = "server.json"


def run_server(home: Path, settings: Settings, *, tell: Callable[[str], None]) -> None:
    """Serves until SIGINT or SIGTERM, then drains and stops what it runs.

    Raises UsageError for a port that is taken, and what `Control` raises.
    """
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        _log_to(home / "server.log")
    except OSError as error:
        raise UsageError(f"the home folder {home} can't be used: {error.strerror}") from error
    listener = _listen(settings.host, settings.port)
    ended = _end_on_signals()
    keep_freed_memory()
    try:
        control = Control(home, settings)
        try:
            url = f"http://{settings.host}:{listener.getsockname()[1]}"
            store = near_store(home, settings)
            body = {"url": url, "gateway": control.gateway.address, "store": store}
            write_durably(home / SERVER_FILE, json.dumps(body).encode(), home)
            control.start()
            tell(f"lockgate serves at {url}, callers at {control.gateway.address}")
            tell(f"state is in {home}; Ctrl-C drains and stops")
            if not ended.is_set():
                _serve(control, listener)
            tell("draining")
        finally:
            control.stop()
            tell("stopped")
    finally:
        listener.close()


def _end_on_signals() -> threading.Event:
    """Returns an event that SIGINT and SIGTERM set.

    uvicorn takes both signals while it serves and raises them again when it is done; without
    handlers of ours the second time would end the process before it drained.
    """
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    return ended


def _serve(control: Control, listener: socket.socket) -> None:
    config = uvicorn.Config(
        create_app(control), log_config=None, access_log=False, timeout_graceful_shutdown=5
    )
    uvicorn.Server(config).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise UsageError(
            f"{host}:{port} can't be used: {error.strerror or error}",
            hint="take another one with --port, or 0 for any that is free",
        ) from error
    listener.listen(512)
    return listener


def _log_to(path: Path) -> None:
    logging.basicConfig(
        filename=path, level=logging.INFO, force=True,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )  # fmt: skip
    for chatty in ("httpx2", "httpcore2"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
