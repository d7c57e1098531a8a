"""The SHA-256 of each file of a version, for what speaks it: Hub, OCI, model signing.

Computed off the publish path, when it is first asked for, and kept beside the packs. It follows
from the version alone; a copy that was lost is computed anew.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable

from lockgate.core import canonical
from lockgate.core.digests import Digest, hex_of
from lockgate.core.errors import NotFoundError
from lockgate.registry.manifest import Manifest
from lockgate.registry.restore import read_piece
from lockgate.store.packs import PackStore

FORMAT = "lockgate/sums@1"
_HEX = re.compile(r"[0-9a-f]{64}")


def sums(
    digest: Digest, manifest: Manifest, store: PackStore, report: Callable[[int, int], None]
) -> dict[str, str]:
    """Returns the SHA-256 (64 hexadecimal digits) of each file by its path.

    `report` gets bytes hashed and in all. Raises IntegrityError when a byte can't be read back.
    """
    name = f"sums/{hex_of(digest)}"
    known = _known(store, name, manifest)
    if known is not None:
        return known
    found: dict[str, str] = {}
    done = 0
    for artifact in manifest.artifacts:
        whole = hashlib.sha256()
        for piece in artifact.pieces:
            whole.update(read_piece(artifact, piece, store))
            done += piece.size
            report(done, manifest.size)
        found[artifact.path] = whole.hexdigest()
    store.blobs.write(name, [canonical.encode({"format": FORMAT, "sha256": found})])
    return found


def _known(store: PackStore, name: str, manifest: Manifest) -> dict[str, str] | None:
    try:
        body = json.loads(store.blobs.read(name))
        found = {str(path): str(value) for path, value in body["sha256"].items()}
    except (NotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None
    whole = set(found) == {artifact.path for artifact in manifest.artifacts}
    sound = body.get("format") == FORMAT and all(_HEX.fullmatch(v) for v in found.values())
    return found if whole and sound else None
