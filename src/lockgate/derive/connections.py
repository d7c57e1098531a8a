"""Connections: places outside that a step may ask, named in parameters, their secrets nowhere.

A parameter says `warehouse`; the environment variable LOCKGATE_CONNECTION_WAREHOUSE has the
address, with its secrets. A step's process gets the variables that its parameters name and no
others; no value of them is in a recipe, a ledger, a log or an error.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from urllib.parse import parse_qsl, unquote, urlsplit

from lockgate.core.errors import UsageError

PREFIX = "LOCKGATE_CONNECTION_"
NAME = r"^[a-z][a-z0-9_-]{0,62}$"
_FORM = re.compile(r"[a-z][a-z0-9+.-]*://([^@/?#\s]*@)?[^@?#\s]*(\?[^@?#\s]*)?")
_OPEN = frozenset({
    "allow_http", "application_name", "connect_timeout", "creds", "dbname", "endpoint", "host",
    "hostaddr", "port", "region", "sslmode", "target_session_attrs", "tls_ca", "user",
    "virtual_hosted_style_request",
})  # fmt: skip
_SHORT = 3


def variable(name: str) -> str:
    """Returns the environment variable that holds the connection `name`."""
    return PREFIX + name.upper().replace("-", "_")


def read_connection(name: str) -> str:
    """Returns the address of the connection `name`.

    Raises UsageError when it is not set, or no URL whose parts are beyond doubt.
    """
    found = os.environ.get(variable(name), "").strip()
    if not found:
        raise UsageError(
            f"the connection {name!r} is not set",
            hint=f"put its address into the environment variable {variable(name)}",
        )
    if not _FORM.fullmatch(found):
        raise UsageError(
            f"{variable(name)} is no proper URL",
            hint="scheme://user:password@host/path?option=value; write @ / ? # and spaces in "
            "a password as %40 %2F %3F %23 %20",
        )
    return found


def connections(names: Iterable[str]) -> dict[str, str]:
    """Returns the environment of a step that may ask `names`; raises as `read_connection`."""
    return {variable(name): read_connection(name) for name in names}


def shown(address: str) -> str:
    """Returns an address as it may be told: without user, password and options."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def who(address: str) -> tuple[str, str | None]:
    """Returns user (or token) and password of an address, decoded; None without a password."""
    user, colon, password = urlsplit(address).netloc.rpartition("@")[0].partition(":")
    return unquote(user), unquote(password) if colon else None


def options(address: str) -> dict[str, str]:
    """Returns the options behind the `?` of an address."""
    return dict(parse_qsl(urlsplit(address).query, keep_blank_values=True))


def secrets_of(address: str) -> tuple[str, ...]:
    """Returns the texts that nobody may see, the longest first: as they stand, and decoded."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return (address,)
    said = parts.netloc.rpartition("@")[0]
    user, colon, password = said.partition(":")
    token = "" if parts.scheme.startswith("postgres") else user
    found = {address, password if colon else token} | ({said} if colon else set())
    for piece in parts.query.split("&"):
        key, _, value = piece.partition("=")
        if key.lower() not in _OPEN:
            found |= {piece, value}
    found |= {unquote(text) for text in found}
    return tuple(sorted((t for t in found if len(t) >= _SHORT), key=len, reverse=True))


def hidden(text: str, secrets: Iterable[str]) -> str:
    """Returns `text` with every secret as `…`."""
    for secret in secrets:
        text = text.replace(secret, "…")
    return text


def secrets_in(names: Iterable[str]) -> tuple[str, ...]:
    """Returns what has to be hidden of the connections `names`, as far as they are set."""
    found = (os.environ.get(variable(name), "").strip() for name in names)
    return tuple(secret for address in found if address for secret in secrets_of(address))
