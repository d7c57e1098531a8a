"""Where the server of this folder is, and the token that opens it."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from lockgate.core.errors import IntegrityError, NotFoundError, UsageError

HOME_NAME = ".lockgate"
SERVER_FILE = "server.json"
START_HINT = "start one in this folder: lockgate serve"


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server's address and the token for it; `store`: its store's folder, if it is near."""

    url: str
    token: str
    store: Path | None = None


def default_home() -> Path:
    """Returns `$LOCKGATE_HOME`, or the nearest `.lockgate` upwards, or the one of this folder."""
    named = os.environ.get("LOCKGATE_HOME")
    if named:
        return Path(named)
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / HOME_NAME).is_dir():
            return folder / HOME_NAME
    return here / HOME_NAME


def find_server(home: Path, url: str | None = None) -> Server:
    """Returns the server of `home`, or the one at `url` with `$LOCKGATE_TOKEN` or home's token.

    Raises NotFoundError when there is none.
    """
    token = os.environ.get("LOCKGATE_TOKEN") or _read(home / "token")
    url = url or os.environ.get("LOCKGATE_SERVER")
    store = None
    if url is None:
        text = _read(home / SERVER_FILE)
        if text is None:
            raise NotFoundError(f"no server was started from {home}", hint=START_HINT)
        try:
            body = json.loads(text)
            url = str(body["url"])
            store = Path(body["store"]) if body.get("store") else None
        except (ValueError, KeyError, TypeError) as error:
            raise IntegrityError(
                f"{home / SERVER_FILE} can't be read", hint="start the server again: lockgate serve"
            ) from error
    if token is None:
        raise NotFoundError(
            f"there is no token for {url}", hint="set LOCKGATE_TOKEN to the server's token"
        )
    if not re.fullmatch(r"https?://(\[[0-9a-fA-F:]+\]|[^\s/:\[\]]+)(:\d{1,5})?/*", url):
        raise UsageError(f"{url!r} is not a server's address", hint="write it as http://host:port")
    return Server(url=url.rstrip("/"), token=token, store=store)


def _read(path: Path) -> str | None:
    try:
        return path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
