"""The step `snapshot` on a real S3 server."""

from __future__ import annotations

import uuid
from pathlib import Path
from urllib.parse import urlencode

import pytest
from tests.unit.derive.outside.taking import Taking, about

from lockgate.core.errors import DeniedError, UsageError

pytestmark = pytest.mark.s3
obstore = pytest.importorskip("obstore", reason="obstore is not installed")


def test_objects_of_s3(s3: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from obstore.store import from_url

    keys = {"endpoint": s3["endpoint"], "region": s3["region"],
            "access_key_id": s3["access_key"], "secret_access_key": s3["secret_key"]}  # fmt: skip
    base = f"s3://{s3['bucket']}/{uuid.uuid4().hex}"
    plain = {"allow_http": True}
    store = from_url(base, config=keys, client_options=plain)  # type: ignore[call-overload]
    for name in ("in/a.csv", "in/deep/b ä%.csv", "in/c.txt", "out/d.csv"):
        obstore.put(store, name, name.encode() * 1000)
    obstore.put(store, "in/large.csv", b"x" * 20_000_000)
    taking = Taking(tmp_path, f"{base}?{urlencode(keys)}", monkeypatch)
    folder = taking.take("objects", prefix="in", files=["*.csv"])
    assert (folder / "deep/b ä%.csv").read_bytes() == "in/deep/b ä%.csv".encode() * 1000
    assert (folder / "large.csv").stat().st_size == 20_000_000
    said = about(folder)
    assert (said["objects"], said["from"]) == (3, base)
    again = taking.take("objects", prefix="in", files=["*.csv"], digest=said["digest"])
    assert about(again) == said

    with pytest.raises(UsageError, match="no object"):
        taking.take("objects", prefix="nowhere")
    wrong = keys | {"secret_access_key": "wr0ng-word"}
    with pytest.raises(DeniedError) as caught:
        Taking(tmp_path, f"{base}?{urlencode(wrong)}", monkeypatch).take("objects")
    assert "wr0ng" not in f"{caught.value.message} {caught.value.hint}"
