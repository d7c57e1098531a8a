"""Who may ask: the one place that decides it. One token for now; every door calls `principal`."""

from __future__ import annotations

import hmac
import os
import re
import secrets
from pathlib import Path

from lockgate.core.errors import DeniedError, IntegrityError

TOKEN_FILE = "token"  # noqa: S105
ACTOR_HEADER = "lockgate-actor"
_ACTOR = re.compile(r"[\w.@+/-]{1,80}")
_TOKEN_BYTES = 32


def ensure_token(home: Path) -> str:
    """Returns the token of `home`, made at first start, readable by its owner alone."""
    path = home / TOKEN_FILE
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return read_token(path)
    with os.fdopen(handle, "w") as file:
        file.write(secrets.token_urlsafe(_TOKEN_BYTES) + "\n")
        file.flush()
        os.fsync(file.fileno())
    return read_token(path)


def read_token(path: Path) -> str:
    """Returns the token in `path`; raises IntegrityError when it is empty or others can read it."""
    if path.stat().st_mode & 0o077:
        raise IntegrityError(
            f"{path} can be read by others", hint=f"chmod 600 {path}, or delete it for a new one"
        )
    token = path.read_text("utf-8").strip()
    if len(token) < _TOKEN_BYTES:
        raise IntegrityError(f"{path} holds no token", hint="delete it, then start the server")
    return token


def principal(token: str, authorization: str | None, actor: str | None) -> str:
    """Returns who asks. Raises DeniedError without the token.

    The name in the actor header is what the holder of the token says; it is recorded as said.
    """
    given = (authorization or "").removeprefix("Bearer ").strip()
    if not hmac.compare_digest(given.encode(), token.encode()):
        raise DeniedError(
            "this needs the token of the server",
            hint="run the command where .lockgate is, or set LOCKGATE_TOKEN",
        )
    return actor if actor and _ACTOR.fullmatch(actor) else "token"
