"""What a copy is: counts, a digest of the content, and errors without secrets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lockgate.core.errors import LockgateError, StepFailedError, UsageError
from lockgate.derive.api import Metrics
from lockgate.derive.connections import hidden, secrets_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What was copied: `about` tells people, `digest` is of the content alone, `metrics` count."""

    about: Mapping[str, Any]
    digest: str
    metrics: Metrics


@contextmanager
def discreet(address: str) -> Iterator[None]:
    """Lets no error out that has a secret of `address` in it, and no library's traceback."""
    secrets = secrets_of(address)
    try:
        yield
    except LockgateError as error:
        hint = hidden(error.hint, secrets) if error.hint else None
        raise type(error)(hidden(error.message, secrets), hint=hint) from None
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - a driver's, with anything in it
        said = hidden(f"{type(error).__name__}: {error}", secrets)[:500]
        raise StepFailedError(f"the copy failed: {said}", hint="is it a fault of ours?") from None


def check_scheme(address: str, schemes: tuple[str, ...], connection: str) -> None:
    """Raises UsageError when the address of `connection` is of another kind."""
    if address.partition("://")[0] not in schemes:
        raise UsageError(
            f"the connection {connection!r} is of another kind",
            hint=f"its address begins with {', '.join(f'{scheme}://' for scheme in schemes)}",
        )


def missing_package(name: str) -> UsageError:
    """Returns the error for a driver that is not installed."""
    return UsageError(
        f"this needs the package {name}, which is not installed",
        hint=f"pip install 'lockgate[sources]'{' nkeys' if name == 'nkeys' else ''}",
    )
