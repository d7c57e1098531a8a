"""Signatures of messages, by the Standard Webhooks scheme (standardwebhooks.com). Pure.

    v1 = base64(HMAC-SHA256(key, id "." timestamp "." body))

with `key` the bytes of a secret `whsec_<base64>`, `timestamp` whole seconds since the epoch, and
`body` the bytes that travel. A message may carry several signatures, for secrets that change.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lockgate.core.errors import DeniedError, UsageError

TOLERANCE_S = 300
ID, TIMESTAMP, SIGNATURE = "webhook-id", "webhook-timestamp", "webhook-signature"
_PREFIX = "whsec_"
_KEY_BYTES = (24, 64)
_MAX_SIGNATURES = 16
_ID = re.compile(r"[\w-]{1,128}", re.ASCII)  # no dot: it divides what is signed
_SECONDS = re.compile(r"[0-9]{1,12}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """A key that two sides share; it is never shown."""

    key: bytes = field(repr=False)


def parse_secret(text: str) -> Secret:
    """Reads `whsec_<base64>` (24 to 64 bytes); raises UsageError, which does not show it."""
    low, high = _KEY_BYTES
    hint = f"make one: echo whsec_$(openssl rand -base64 {high // 2})"
    if not text.startswith(_PREFIX):
        raise UsageError(f"a secret begins with {_PREFIX!r}, this one does not", hint=hint)
    try:
        key = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raise UsageError("what follows 'whsec_' is not base64", hint=hint) from None
    if not low <= len(key) <= high:
        raise UsageError(f"a secret has {low} to {high} bytes, this one {len(key)}", hint=hint)
    return Secret(key=key)


def sign(secret: Secret, message: str, timestamp: int, body: bytes) -> str:
    """Returns `v1,<base64>` for the message with the id `message`."""
    signed = f"{message}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(secret.key, signed, hashlib.sha256)).decode()


def headers(secrets: Sequence[Secret], message: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Returns the three headers of a message, signed with each of `secrets`."""
    signatures = " ".join(sign(secret, message, timestamp, body) for secret in secrets)
    return {ID: message, TIMESTAMP: str(timestamp), SIGNATURE: signatures}


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a message says of itself before anybody believes it."""

    message: str
    timestamp: int
    signatures: tuple[str, ...]


def read_claim(given: Mapping[str, str], now: float) -> Claim:
    """Returns what the headers (named in lower case) claim; `now` is seconds since the epoch.

    Raises DeniedError when one is missing or malformed, or when the time is more than five
    minutes from `now`: who recorded a message can't send it again later.
    """
    message, timestamp = given.get(ID, ""), given.get(TIMESTAMP, "")
    signatures = tuple(given.get(SIGNATURE, "").split(" "))
    if not _ID.fullmatch(message) or not _SECONDS.fullmatch(timestamp) or signatures == ("",):
        raise DeniedError(
            f"a message needs the headers {ID}, {TIMESTAMP} and {SIGNATURE}",
            hint="docs/ci.md shows how to sign",
        )
    if abs(now - int(timestamp)) > TOLERANCE_S:
        raise DeniedError(
            f"the message is more than {TOLERANCE_S // 60} minutes from the server's time",
            hint="compare both clocks; sign anew each time",
        )
    return Claim(message=message, timestamp=int(timestamp), signatures=signatures)


def verify(secrets: Sequence[Secret], claim: Claim, body: bytes) -> None:
    """Raises DeniedError unless one of the signatures is that of one of `secrets` over `body`.

    Compares in constant time; signatures of another version than v1 count for nothing.
    """
    good = False
    for secret in secrets:
        wanted = sign(secret, claim.message, claim.timestamp, body).encode()
        for signature in claim.signatures[:_MAX_SIGNATURES]:
            good |= hmac.compare_digest(wanted, signature.encode())
    if not good:
        raise DeniedError("the signature does not fit", hint="is it the same secret on both sides?")
