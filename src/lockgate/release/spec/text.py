"""A release spec's text or values → a checked spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lockgate.core import document
from lockgate.release.spec.shape import ReleaseSpec

_HINT = "docs/release-spec.md describes every setting"


def parse_spec(text: str) -> ReleaseSpec:
    """Reads a spec; raises SpecError with every mistake, each with its path and line."""
    return document.parse(text, ReleaseSpec, hint=_HINT)


def check_spec(data: Mapping[str, Any]) -> ReleaseSpec:
    """Returns the spec of already parsed values; raises SpecError with every mistake."""
    return document.validate(data, ReleaseSpec, hint=_HINT)


def load(text: str) -> list[Any]:
    """Returns the documents of a stranger's YAML; raises SpecError for what is none, or a trick."""
    return document.load(text, hint=_HINT)
