"""lockgate: takes a model from finished weights to safe production traffic, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lockgate._version import __version__

if TYPE_CHECKING:
    from lockgate.client.opened import OpenVersion

__all__ = ["__version__", "open"]


def open(reference: str, **options: Any) -> OpenVersion:  # noqa: A001 - as in gzip.open
    """Opens a version's tensors; see `lockgate.client.opened.open_version`."""
    from lockgate.client.opened import open_version

    return open_version(reference, **options)
