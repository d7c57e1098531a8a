"""A damaged object is put aside when it is found, so that publishing again heals the version."""

from __future__ import annotations

from pathlib import Path

import pytest

from lockgate.core.digests import digest_of
from lockgate.core.errors import IntegrityError, NotFoundError
from lockgate.store.local import LocalObjects


def test_other_bytes_of_the_same_length_are_put_aside_and_stored_anew(tmp_path: Path) -> None:
    objects = LocalObjects(tmp_path)
    digest = digest_of(b"right")
    objects.put([(digest, b"right")])
    path = next((tmp_path / "objects").glob("*/*"))
    path.write_bytes(b"wrong")
    with pytest.raises(IntegrityError):
        objects.get(digest)
    assert (tmp_path / "quarantine" / path.name).read_bytes() == b"wrong"
    with pytest.raises(NotFoundError):
        objects.get(digest)
    assert objects.missing({digest: 5}) == {digest}
    objects.put([(digest, b"right")])
    assert objects.get(digest) == b"right"
