"""`hooks.yaml` in the home folder: who is told what, and who may report. Read at the start.

Secrets are never in the file: it names an environment variable or a file that holds one.
"""

from __future__ import annotations

import ipaddress
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from lockgate.core import document
from lockgate.core.errors import Problem, SpecError, UsageError
from lockgate.core.events import event_classes
from lockgate.core.units import parse_duration
from lockgate.server.hooks.signature import Secret, parse_secret

HOOKS_FILE = "hooks.yaml"
HINT = "docs/ci.md#signed-messages describes hooks.yaml"
_MAX_SECRET_FILE = 4096
_NAME = r"^[a-z][a-z0-9_-]{0,62}$"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


Duration = Annotated[float, BeforeValidator(document.ours(parse_duration))]
Globs = Annotated[
    tuple[Annotated[str, Field(pattern=r"^[\w./*?-]{1,128}$")], ...],
    BeforeValidator(_list), Field(min_length=1, max_length=64),
]  # fmt: skip


class SecretSpec(_Strict):
    """Where a secret is: in the environment variable `env`, or in `file` (from the home folder)."""

    env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")
    file: str | None = Field(default=None, min_length=1, max_length=4096)

    @model_validator(mode="before")
    @classmethod
    def _no_text(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueError(  # noqa: TRY004 - pydantic collects this one
                "a secret is never written here: name it by 'env' or 'file'"
            )
        return value

    @model_validator(mode="after")
    def _one(self) -> SecretSpec:
        if (self.env is None) == (self.file is None):
            raise ValueError("a secret is named by either 'env' or 'file'")
        return self


Secrets = Annotated[
    tuple[SecretSpec, ...], BeforeValidator(_list), Field(min_length=1, max_length=8)
]


class OutSpec(_Strict):
    """One receiver: where, signed with what, and which events of which models.

    `timeout` is that of one try, `give_up_after` the age at which an event is given up.
    """

    insecure: bool = False  # before `url`, whose check reads it
    url: str = Field(max_length=2000)
    secret: Secrets
    events: Globs = ("*",)
    models: Globs = ("*",)
    timeout: Annotated[Duration, Field(ge=0.1, le=60)] = 10.0
    give_up_after: Annotated[Duration, Field(ge=1, le=30 * 86_400)] = 86_400.0

    @field_validator("url")
    @classmethod
    def _may_go_there(cls, url: str, info: ValidationInfo) -> str:
        insecure = bool(info.data.get("insecure"))
        checked: str = document.ours(partial(check_url, insecure=insecure))(url)
        return checked

    @field_validator("events")
    @classmethod
    def _there_are(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in event_classes()):
                raise ValueError(f"there is no event {pattern!r}: docs/events.md has them all")
        return patterns


class InSpec(_Strict):
    """One reporter: known by its secret, for some models."""

    secret: Secrets
    models: Globs = ("*",)


Name = Annotated[str, Field(pattern=_NAME)]


class HooksSpec(_Strict):
    """All of `hooks.yaml`."""

    out: dict[Name, OutSpec] = Field(default_factory=dict, max_length=32)
    in_: dict[Name, InSpec] = Field(default_factory=dict, alias="in", max_length=256)


@dataclass(frozen=True, slots=True, kw_only=True)
class HookSettings:
    """What `hooks.yaml` says, and the secrets that it names, by hook."""

    spec: HooksSpec
    out_secrets: Mapping[str, tuple[Secret, ...]]
    in_secrets: Mapping[str, tuple[Secret, ...]]


def check_url(url: str, *, insecure: bool) -> str:
    """Returns `url` when messages may go there; raises UsageError.

    https, or http to this machine; `insecure` allows http anywhere. What is signed can't be
    changed on its way, but without TLS it can be read.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError as error:
        raise UsageError(f"the url can't be read: {error}") from error
    plain = url.isascii() and url.isprintable() and " " not in url
    if parts.scheme not in ("http", "https") or not host or not plain or parts.fragment:
        raise UsageError("a url is http(s)://host/path, without spaces and '#'")
    if parts.username is not None or parts.password is not None:
        raise UsageError("a url here holds no name and no password: messages are signed")
    if parts.scheme == "http" and not insecure and not _here(host):
        raise UsageError(
            "http leaves this machine in the open", hint="write https, or 'insecure: true'"
        )
    return url


def _here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def load_hooks(home: Path, environment: Mapping[str, str] = os.environ) -> HookSettings:
    """Returns the hooks of `home`, none without a `hooks.yaml`.

    Raises SpecError with every mistake and its line, secrets that can't be had among them.
    """
    path = home / HOOKS_FILE
    try:
        text = path.read_text("utf-8") if path.exists() else "{}"
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} can't be read: {error}") from error
    spec = document.parse(text, HooksSpec, hint=HINT)
    problems: list[Problem] = []
    found: dict[str, dict[str, tuple[Secret, ...]]] = {"out": {}, "in": {}}
    for side, hooks in (("out", spec.out), ("in", spec.in_)):
        for name, hook in hooks.items():
            secrets: list[Secret] = []
            for secret in hook.secret:
                try:
                    secrets.append(_secret(secret, home, environment))
                except UsageError as error:
                    where = (side, name, "secret")
                    line = document.line_of(text, where)
                    problems.append(Problem(path=".".join(where), message=str(error), line=line))
            found[side][name] = tuple(secrets)
    if problems:
        raise SpecError(problems, hint=HINT)
    return HookSettings(spec=spec, out_secrets=found["out"], in_secrets=found["in"])


def _secret(spec: SecretSpec, home: Path, environment: Mapping[str, str]) -> Secret:
    if spec.env is not None:
        text = environment.get(spec.env)
        if text is None:
            raise UsageError(f"the environment variable {spec.env} is not set")
        return parse_secret(text.strip())
    return parse_secret(_read_private(home / (spec.file or "")))


def _read_private(path: Path) -> str:
    """Returns the text of a file that only this user can read; raises UsageError."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as file:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid():
                raise UsageError(f"{path} is not a file of this user")
            if found.st_mode & 0o077:
                raise UsageError(f"{path} can be used by others: chmod 600 {path}")
            return file.read(_MAX_SECRET_FILE).decode("ascii").strip()
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} holds no secret") from error


def wanted(patterns: tuple[str, ...], name: str | None) -> bool:
    """Says whether one of the globs fits; a name that is not known fits '*' alone."""
    return any(p == "*" if name is None else fnmatchcase(name, p) for p in patterns)
