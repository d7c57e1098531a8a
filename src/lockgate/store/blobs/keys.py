"""The keys that wrap the keys of encrypted blobs, in a file that only its owner may read.

    {"format": "lockgate/keys@1", "keys": [{"id": "1f2e…", "key": "<32 bytes, base64>"}, …]}

Oldest first; the last one wraps what is written from now on, the others still open what was
written before. Losing the file loses every blob.
"""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lockgate.core.errors import IntegrityError, PermanentError, UsageError
from lockgate.store.durable import sync_folder

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

FORMAT = "lockgate/keys@1"
KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16
_ID = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key-encryption key: 32 secret bytes and the 16 hexadecimal digits that name them."""

    id: str
    secret: bytes = field(repr=False)


class KeyRing:
    """Key-encryption keys, oldest first: the last one wraps, all of them unwrap."""

    def __init__(self, keys: Sequence[Key]) -> None:
        if not keys:
            raise UsageError("a key ring without a key can't encrypt", hint="make a key first")
        self._keys = {key.id: key for key in keys}
        self.newest = keys[-1].id

    def wrap(self, data_key: bytes, about: bytes) -> bytes:
        """Returns `data_key` under the newest key, bound to `about`: nonce, ciphertext, tag."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + self._cipher(self.newest).encrypt(nonce, data_key, about)

    def unwrap(self, key: str, wrapped: bytes, about: bytes) -> bytes:
        """Returns the data key that was wrapped under the key of that id.

        Raises IntegrityError when this ring does not have it, and when the wrapped key, or what it
        is bound to, was changed.
        """
        from cryptography.exceptions import InvalidTag

        try:
            nonce, sealed = wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:]
            return bytes(self._cipher(key).decrypt(nonce, sealed, about))
        except InvalidTag:
            raise IntegrityError("its wrapped key was changed, or is another blob's") from None

    def _cipher(self, key: str) -> AESGCM:
        if key not in self._keys:
            raise IntegrityError(
                f"its key {key} is not in this key file",
                hint="use the key file that it was written with; a key must stay in the file "
                "until no blob is under it",
            )
        return aes_gcm(self._keys[key].secret)


def new_key() -> Key:
    """Returns a new random key."""
    return Key(id=secrets.token_hex(8), secret=secrets.token_bytes(KEY_BYTES))


def create(path: Path) -> KeyRing:
    """Makes a key file with one new key, mode 0600; raises UsageError when there is one."""
    keys = [new_key()]
    _write(path, keys, replace=False)
    return KeyRing(keys)


def rotate(path: Path) -> KeyRing:
    """Adds a new key to the file, which wraps from now on; the others stay to read."""
    keys = [*_read(path), new_key()]
    _write(path, keys, replace=True)
    return KeyRing(keys)


def load(path: Path) -> KeyRing:
    """Returns the keys of a file.

    Raises UsageError when it is not there, or others may read it; IntegrityError when damaged.
    """
    return KeyRing(_read(path))


def aes_gcm(key: bytes) -> AESGCM:
    """Returns AES-256-GCM under `key`; raises UsageError when cryptography is not installed."""
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError as error:
        raise UsageError(
            "encryption needs the package cryptography, which is not installed",
            hint="pip install 'lockgate[encryption]'",
        ) from error
    return AESGCM(key)


def _read(path: Path) -> list[Key]:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise UsageError(
                    f"the key file {path} can be read by others", hint=f"chmod 600 {path}"
                )
            return _parse(json.load(file))
    except OSError as error:
        raise UsageError(
            f"the key file {path} can't be read: {error.strerror}",
            hint="it is made once, then kept safe: without it nothing can be decrypted",
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{path} is not a key file of the form {FORMAT}") from error


def _parse(data: dict[str, object]) -> list[Key]:
    """Returns the keys; raises ValueError, KeyError or TypeError for another form."""
    if data["format"] != FORMAT or not isinstance(data["keys"], list):
        raise ValueError(data["format"])
    keys = [
        Key(id=item["id"], secret=base64.b64decode(item["key"], validate=True))
        for item in data["keys"]
    ]
    ids = {key.id for key in keys}
    if len(ids) != len(keys) or not keys:
        raise ValueError("keys")
    if not all(_ID.fullmatch(key.id) and len(key.secret) == KEY_BYTES for key in keys):
        raise ValueError("key")
    return keys


def _write(path: Path, keys: Sequence[Key], *, replace: bool) -> None:
    listed = [{"id": k.id, "key": base64.b64encode(k.secret).decode("ascii")} for k in keys]
    text = json.dumps({"format": FORMAT, "keys": listed}, indent=1) + "\n"
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            draft.replace(path)
        else:
            path.hardlink_to(draft)
        sync_folder(path.parent)
    except FileExistsError as error:
        raise UsageError(
            f"there is a key file {path} already", hint="rotate it, or choose another place"
        ) from error
    except OSError as error:
        raise PermanentError(f"the key file {path} can't be written: {error.strerror}") from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
