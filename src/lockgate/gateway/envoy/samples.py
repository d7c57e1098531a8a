"""From one access-log row to one `Sample`. Pure but for the tailer of the file log."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from xxhash import xxh64_intdigest

from lockgate.core.traffic import WHOLE, Sample
from lockgate.gateway.envoy.values import MIRROR_ROUTE, UNIT, USAGE, split_pool

ROW = {
    "at": "%START_TIME(%s.%6f)%",
    "route": "%ROUTE_NAME%",
    # Not UPSTREAM_CLUSTER: that one shows alt_stat_name.
    "pool": "%UPSTREAM_CLUSTER_RAW%",
    "weights": "%METADATA(ROUTE:lockgate:weights)%",
    "status": "%RESPONSE_CODE%",
    "flags": "%RESPONSE_FLAGS%",
    "duration_ms": "%DURATION%",
    "duration_us": "%COMMON_DURATION(DS_RX_BEG:DS_TX_END:us)%",
    # Not the time to the first header: servers send SSE headers before the first token.
    "first_body_us": "%COMMON_DURATION(DS_RX_BEG:US_RX_BODY_BEG:us)%",
    "bytes_in": "%BYTES_RECEIVED%",
    "bytes_out": "%BYTES_SENT%",
    "path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
    "request_id": "%REQ(X-REQUEST-ID)%",
    "tokens": f"%DYNAMIC_METADATA({USAGE}:completion_tokens)%",
    "unit": f"%REQ({UNIT})%",
}
"""Access-log row: field → Envoy's format. The same text in both logs, so one reader."""

MIRROR_ROW = {**ROW, "route": f"%REQ({MIRROR_ROUTE})%", "mirrored": "yes"}
"""The row of a copy; what it is about stands in headers that only the mirror policy can set."""

FAILURES = frozenset(
    {
        "UH",  # no healthy replica
        "UF",  # could not connect
        "UO",  # over the circuit breaker's limit
        "UC",  # the replica closed the connection
        "UR",  # the replica reset the stream
        "UT",  # the replica was too slow
        "UPE",  # the replica broke the protocol
        "UMSDR",  # the stream was longer than allowed
        "LR",  # reset on our side: the replica was silent
        "LH",  # the health check failed
        "SI",  # no byte moved for the idle time
        "NC",  # the pool is gone
        "NR",  # no route
        "URX",  # all tries failed
        "DT",  # the request took too long
        "UDR",  # no address for the replica
    }
)
"""Envoy's response flags that mean: the caller did not get what it asked for."""

ABANDONED = frozenset({"DC", "DR", "DPE"})
"""Flags for a caller that went away or broke the protocol: nobody's failure but its own."""

CLIENT_CLOSED = 499
"""The status of a request that its caller gave up, as nginx writes it."""


def sample(row: Mapping[str, object]) -> Sample | None:
    """Returns the sample of one row, or None when no version was chosen for the request.

    A caller that goes away gives status 499 and no flags: not a failure of the version.
    """
    fields = {key: text for key, value in row.items() if (text := _text(value))}
    route, version = split_pool(fields.get("pool", ""))
    name, _, revision = fields.get("route", "").rpartition("#")
    if not version or name != route or not revision.isdigit():
        return None
    mirrored = "mirrored" in fields
    share = 1.0 if mirrored else propensity(fields.get("weights", ""), version)
    if share <= 0.0:
        return None
    flags = set(fields.get("flags", "").split(","))
    failures = sorted(flags & FAILURES)
    gone = bool(flags & ABANDONED) and not failures
    return Sample(
        at=float(fields.get("at", 0)),
        route=route,
        version=version,
        propensity=share,
        revision=int(revision),
        status=CLIENT_CLOSED if gone else int(_number(fields, "status") or 0),
        duration_s=_seconds(fields),
        first_body_s=_scaled(_number(fields, "first_body_us"), 1e-6),
        tokens=_whole(_number(fields, "tokens")),
        bytes_out=int(_number(fields, "bytes_out") or 0),
        bytes_in=int(_number(fields, "bytes_in") or 0),
        flags=",".join(failures),
        path=fields.get("path", "").partition("?")[0],
        request_id=fields.get("request_id", ""),
        unit=xxh64_intdigest(fields["unit"].encode()) if "unit" in fields else None,
        mirrored=mirrored,
    )


def propensity(weights: str, version: str) -> float:
    """Returns the probability of `version` under the logged weights (JSON); 0 when not known."""
    try:
        return float(json.loads(weights).get(version, 0)) / WHOLE
    except (ValueError, AttributeError):
        return 0.0


def samples(rows: Iterable[Mapping[str, object]]) -> list[Sample]:
    """Returns the samples of `rows`, leaving out requests that reached no version."""
    return [found for row in rows if (found := sample(row)) is not None]


def _text(value: object) -> str:
    text = "" if value is None else str(value)
    return "" if text == "-" else text


def _number(fields: Mapping[str, str], key: str) -> float | None:
    try:
        return float(fields[key])
    except (KeyError, ValueError):
        return None


def _scaled(value: float | None, scale: float) -> float | None:
    return None if value is None else value * scale


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _seconds(fields: Mapping[str, str]) -> float:
    exact = _scaled(_number(fields, "duration_us"), 1e-6)
    return exact if exact is not None else (_number(fields, "duration_ms") or 0.0) * 1e-3


class Tail:
    """Reads the rows that a growing JSON-lines file gained since the last call.

    The offset is kept in a file beside it, so that a new process goes on where the last stopped;
    it is written after delivery: a crash between the two delivers some rows again, loses none.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mark = path.with_suffix(".offset")
        self.offset = self._read_mark()

    def rows(self, limit: int = 4 << 20) -> list[dict[str, object]]:
        """Returns the next whole rows, at most `limit` bytes of them; skips broken ones."""
        if not self._path.exists():
            return []
        if self._path.stat().st_size < self.offset:
            self.offset = 0  # rotated
        with self._path.open("rb") as file:
            file.seek(self.offset)
            data = file.read(limit)
        whole = data[: data.rfind(b"\n") + 1]
        self.offset += len(whole)
        return [row for line in whole.splitlines() if (row := _row(line)) is not None]

    def commit(self) -> None:
        """Keeps the offset: the rows so far are delivered."""
        temporary = self._mark.with_suffix(".tmp")
        temporary.write_text(str(self.offset))
        temporary.replace(self._mark)

    def begin_rotation(self) -> Path:
        """Moves the file aside and returns where it is now; nothing is read from it yet."""
        moved = self._path.with_suffix(".old")
        self._path.replace(moved)
        return moved

    def undo_rotation(self, moved: Path) -> None:
        """Moves the file back: its writer did not open a new one."""
        if not self._path.exists():
            moved.replace(self._path)

    def finish_rotation(self, moved: Path) -> list[dict[str, object]]:
        """Returns the last rows of the old file, removes it and starts with the new one."""
        with moved.open("rb") as file:
            file.seek(self.offset)
            data = file.read()
        moved.unlink()
        self.offset = 0
        return [row for line in data.splitlines() if (row := _row(line)) is not None]

    def _read_mark(self) -> int:
        try:
            return int(self._mark.read_text())
        except (OSError, ValueError):
            return 0


def _row(line: bytes) -> dict[str, object] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
