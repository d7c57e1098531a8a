"""Names: `acme/chat` (a model), `v42`, an alias or a digest (a version of it)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lockgate.core.digests import is_digest
from lockgate.core.errors import UsageError

_PART = r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?"
_MODEL = re.compile(rf"{_PART}/{_PART}")
_NUMBER = re.compile(r"v([1-9][0-9]{0,8})")
_ALIAS = re.compile(r"(?!v[0-9]+$)[a-z][a-z0-9_-]{0,62}")
_RELEASE = re.compile(r"rel-[1-9][0-9]{0,9}")
_PLACE = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


def check_model(name: str) -> str:
    """Returns `name` when it is a model's name, `owner/name`; raises UsageError otherwise."""
    if not _MODEL.fullmatch(name) or ".." in name:
        raise UsageError(
            f"{name!r} is not a model name",
            hint="a model is named 'owner/name': lower-case letters, digits, '.', '_' and '-'",
        )
    return name


def check_alias(name: str) -> str:
    """Returns `name` when it can be an alias; raises UsageError otherwise (`v3` can't)."""
    if not _ALIAS.fullmatch(name):
        raise UsageError(
            f"{name!r} can't be an alias",
            hint="an alias starts with a letter, has letters, digits, '_' and '-', and is not 'v3'",
        )
    return name


def check_target(name: str) -> str:
    """Returns `name` when it can name a target; raises UsageError otherwise."""
    if not _PLACE.fullmatch(name):
        raise UsageError(
            f"{name!r} can't name a target", hint="use lower-case letters, digits and '-'"
        )
    return name


def check_release(name: str) -> str:
    """Returns `name` when it has the form of a release's id; raises UsageError otherwise."""
    if not _RELEASE.fullmatch(name):
        raise UsageError(f"{name!r} is not a release", hint="releases are named rel-1, rel-2, …")
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRef:
    """How somebody named a version: by number, alias or digest; exactly one is set."""

    number: int | None = None
    alias: str | None = None
    digest: str | None = None

    def __str__(self) -> str:
        return f"v{self.number}" if self.number else (self.alias or self.digest or "")


def parse_version(text: str) -> VersionRef:
    """Reads `v42`, `42`, `champion` or `blake3:…`; raises UsageError for anything else."""
    if is_digest(text):
        return VersionRef(digest=text)
    match = _NUMBER.fullmatch(text if text.startswith("v") else "v" + text)
    if match:
        return VersionRef(number=int(match[1]))
    if _ALIAS.fullmatch(text):
        return VersionRef(alias=text)
    raise UsageError(
        f"{text!r} does not name a version",
        hint="name it by number (v3), alias (champion) or digest (blake3:…)",
    )


def split_reference(text: str) -> tuple[str, str | None]:
    """Splits `acme/chat:v3` or `acme/chat` into model and version text.

    Raises UsageError when the model's name is not one.
    """
    model, _, version = text.partition(":")
    return check_model(model), version or None


def route_name(model: str, target: str) -> str:
    """Returns the name of the route that serves `model` at `target`."""
    return f"{model}@{target}"
