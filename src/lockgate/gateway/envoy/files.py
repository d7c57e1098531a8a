"""Configuration by files, and rows by a file: the mode that needs no server of ours.

A file is written beside its name and renamed over it; Envoy watches the directory. Files are not
acknowledged, so that "in force" is read from Envoy's own statistics: the version it runs, and the
count of updates that it rejected.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lockgate.core.errors import PermanentError, TemporaryError
from lockgate.core.traffic import Sample
from lockgate.gateway.envoy.process import Admin
from lockgate.gateway.envoy.samples import Tail, samples
from lockgate.gateway.envoy.values import (
    CLUSTER,
    ENDPOINT,
    ROUTE,
    TABLE,
    EnvoyOptions,
    Json,
    Resources,
    Sources,
    pool_key,
    short_reason,
    version_of,
)
from lockgate.store.durable import write_durably

_LOG = logging.getLogger(__name__)
_CDS, _RDS = "cluster_manager.cds", f"http.callers.rds.{TABLE}"
_POLL_S = 0.02
_TAIL_S = 0.2
_ROTATE_S = 1.0


class FilesTransport:
    """Writes xDS files for one Envoy and reads its access log."""

    def __init__(
        self,
        *,
        directory: Path,
        admin: Admin,
        options: EnvoyOptions,
        deliver: Callable[[list[Sample]], None],
        reason: Callable[[], str],
        rotate_at: int = 64 << 20,
    ) -> None:
        self._rotate_at = rotate_at
        self._directory = directory
        self._admin = admin
        self._options = options
        self._deliver = deliver
        self._reason = reason
        self._tail = Tail(directory / "access.jsonl")
        self._written: dict[str, str] = {}
        self._unproven: dict[str, str] = {}
        self._before: dict[str, int] = {}
        self._stop = threading.Event()
        self._reader: threading.Thread | None = None

    def sources(self) -> Sources:
        """Returns what the configuration says about the files."""
        return Sources(
            cds=self._source("clusters"),
            rds=self._source("routes"),
            eds=lambda name: self._source(pool_key(name)),
            access_log=self._access_log,
            bootstrap={"dynamic_resources": {"cds_config": self._source("clusters")}},
        )

    def start(self, resources: Resources) -> None:
        """Writes all files, which Envoy reads when it starts, and begins to read the log."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            self._before = self._rejections(deadline=0.0)  # of a proxy that runs already
        except TemporaryError:
            self._before = {}
        self._unproven = dict(self._write(resources, (ENDPOINT, CLUSTER, ROUTE)))
        self._reader = threading.Thread(target=self._follow, daemon=True, name="lockgate-rows")
        self._reader.start()

    def apply(self, resources: Resources) -> None:
        """Makes `resources` the state of the proxy; returns when it runs that version.

        Raises PermanentError when the proxy rejected a file, TemporaryError when the new version
        is not in force in time.
        """
        deadline = time.monotonic() + self._options.ack_timeout_s
        kept = {pool_key(name) for name in resources[ENDPOINT]}
        for prefix in [p for p in self._written if p.startswith("cluster.pool-")]:
            if prefix.removeprefix("cluster.") not in kept:
                del self._written[prefix]
        for kinds in ((ENDPOINT, CLUSTER), (ROUTE,)):
            before = self._rejections(deadline)
            changed = {**self._unproven, **dict(self._write(resources, kinds))}
            if self._unproven:
                before = {prefix: self._before.get(prefix, 0) for prefix in changed}
            self._unproven = {}
            self._wait(changed, before, deadline)
        for path in self._directory.glob("pool-*.json"):
            if path.stem not in kept:
                path.unlink(missing_ok=True)

    def settled(self) -> bool:
        """Says whether the proxy runs the versions that were written last."""
        try:
            stats = self._admin.stats(r"version_text$")
        except TemporaryError:
            return False
        return not self._missing(self._written, stats)

    def proxies(self) -> int:
        """Returns 1 when the proxy answers, 0 otherwise."""
        try:
            self._admin.stats(r"^server\.live$")
        except TemporaryError:
            return 0
        return 1

    def close(self) -> None:
        """Stops to read the log; delivers what is in it so far."""
        self._stop.set()
        if self._reader is not None:
            self._reader.join(5.0)
            self._reader = None

    def _access_log(self, row: Mapping[str, str]) -> Json:
        return {
            "name": "envoy.access_loggers.file",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3."
                "FileAccessLog",
                "path": str(self._directory / "access.jsonl"),
                "log_format": {"json_format": dict(row)},
            },
        }

    def _source(self, name: str) -> Json:
        path = self._directory / f"{name}.json"
        return {
            "path_config_source": {
                "path": str(path),
                "watched_directory": {"path": str(self._directory)},
            },
            "resource_api_version": "V3",
            "initial_fetch_timeout": "0s",
        }

    def _write(self, resources: Resources, kinds: tuple[str, ...]) -> Iterator[tuple[str, str]]:
        """Writes the files of `kinds`; yields (statistics prefix, version) of each that changed."""
        for kind in kinds:
            found = resources[kind]
            if kind == ENDPOINT:
                for name, value in found.items():
                    key = pool_key(name)
                    yield from self._put(key, f"cluster.{key}", {name: value})
            else:
                name, prefix = ("clusters", _CDS) if kind == CLUSTER else ("routes", _RDS)
                yield from self._put(name, prefix, found)

    def _put(self, name: str, prefix: str, found: Mapping[str, Json]) -> Iterator[tuple[str, str]]:
        version = version_of(found)
        if self._written.get(prefix) == version:
            return
        text = json.dumps({"version_info": version, "resources": list(found.values())})
        write_durably(self._directory / f"{name}.json", text.encode(), self._directory)
        self._written[prefix] = version
        yield prefix, version

    def _wait(self, changed: Mapping[str, str], before: Mapping[str, Any], deadline: float) -> None:
        while True:
            try:
                stats = self._admin.stats(r"(version_text|update_rejected|update_failure)$")
            except TemporaryError:
                stats = {}
            bad = [prefix for prefix in changed if _rejected(stats, prefix) > before.get(prefix, 0)]
            if bad:
                for prefix in changed:
                    self._written.pop(prefix, None)
                reason = short_reason(self._reason()) or bad[0]
                raise PermanentError(
                    f"the proxy refused the new configuration: {reason}",
                    hint="nothing has changed; correct the endpoint or the route",
                )
            if not self._missing({**self._written, **changed}, stats):
                return
            if time.monotonic() > deadline:
                raise TemporaryError(
                    "the proxy did not take over the new configuration within "
                    f"{self._options.ack_timeout_s:g} s",
                    hint="see envoy.log in the gateway's state directory",
                )
            time.sleep(_POLL_S)

    def _rejections(self, deadline: float) -> dict[str, int]:
        while True:
            try:
                stats = self._admin.stats(r"(update_rejected|update_failure)$")
            except TemporaryError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_POLL_S)
                continue
            prefixes = {name.rpartition(".")[0] for name in stats}
            return {prefix: _rejected(stats, prefix) for prefix in prefixes}

    @staticmethod
    def _missing(wanted: Mapping[str, str], stats: Mapping[str, Any]) -> list[str]:
        return [
            prefix
            for prefix, version in wanted.items()
            if stats.get(f"{prefix}.version_text") != version
        ]

    def _follow(self) -> None:
        while True:
            last = self._stop.is_set()
            rows = self._tail.rows()
            if rows:
                self._deliver(samples(rows))
                self._tail.commit()
                continue
            if self._tail.offset > self._rotate_at:
                self._rotate()
            if last:
                return
            self._stop.wait(_TAIL_S)

    def _rotate(self) -> None:
        """Starts a new log file; called when every row so far is delivered."""
        moved = self._tail.begin_rotation()
        try:
            self._admin.post("/reopen_logs")
        except TemporaryError as error:
            _LOG.warning("the access log could not be rotated: %s", error)
            self._tail.undo_rotation(moved)
            return
        self._stop.wait(_ROTATE_S)  # rows that were on their way reach the old file
        rest = self._tail.finish_rotation(moved)
        if rest:
            self._deliver(samples(rest))
        self._tail.commit()


def _rejected(stats: Mapping[str, Any], prefix: str) -> int:
    return int(stats.get(f"{prefix}.update_rejected", 0)) + int(
        stats.get(f"{prefix}.update_failure", 0)
    )
