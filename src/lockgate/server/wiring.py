"""The only place that names concrete adapters: home folder → a control plane, running."""

from __future__ import annotations

import json
import logging
import shutil
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lockgate.analysis.judge import SequentialJudge
from lockgate.core.clock import Clock, SystemClock
from lockgate.core.errors import ConflictError, PermanentError
from lockgate.core.traffic import without_twin
from lockgate.fleet.local import LocalFleet
from lockgate.gateway.envoy import EnvoyGateway, EnvoyOptions
from lockgate.gateway.envoy.values import SCORES_SOCKET
from lockgate.host.detached import Lock
from lockgate.ledger.sqlite import SqliteLedger
from lockgate.observe.docket import Docket
from lockgate.observe.scoring.copies import Copies
from lockgate.observe.scoring.desk import Desk, Task
from lockgate.observe.sqlite import SqliteSamples
from lockgate.registry.keep.backup import Backup, backups, recover
from lockgate.registry.keep.keeper import Keeper
from lockgate.registry.service import Registry
from lockgate.release.act import Ports
from lockgate.release.commands import Commands
from lockgate.release.loop import Engine, Tools
from lockgate.server.access import ensure_token
from lockgate.server.config import Settings, load_settings, run_folder
from lockgate.server.hooks.messenger import Messenger
from lockgate.server.versions import Versions
from lockgate.store.blobs.api import BackendOptions, Blobs
from lockgate.store.blobs.open import open_blobs
from lockgate.store.durable import write_durably
from lockgate.store.pack import FOLDER
from lockgate.store.packs import PackStore

_PRUNE_EVERY_S = 3600.0
_log = logging.getLogger(__name__)


class Control:
    """A running control plane over one home folder: store, ledger, fleet, gateway and the loop.

    Raises ConflictError when another server runs over `home`, and what the adapters raise.
    """

    def __init__(self, home: Path, settings: Settings, *, clock: Clock | None = None) -> None:
        home = home.resolve()  # replicas work in folders of their own
        self.home = home
        self.settings = settings
        self.clock = clock or SystemClock()
        self.started_at = self.clock.now()
        self._owner = _own(home)
        self.token = ensure_token(home)
        self.ledger = SqliteLedger(home / "ledger.db")
        self.samples = SqliteSamples(home / "samples.db")
        _probe(home, settings)
        self.store = PackStore(open_store(home, settings))
        self.registry = Registry(self.ledger, self.store, self.clock)
        self.keeper = Keeper(self.registry, self.store, self.clock, self.ledger.copy)
        self.hooks = Messenger(home, self.ledger, self.registry, self.clock)
        self._versions = Versions(home / "versions", self.registry, hot_bytes=settings.hot_bytes)
        self.store.near = self._versions.read
        self.gateway = self._gateway()
        try:
            self.fleet = LocalFleet(
                home / "fleet", files=self._versions.folder, dropped=self._versions.drop
            )
        except BaseException:
            self.gateway.close(stop=False)
            raise
        self._versions.adopt({without_twin(r.version) for r in self.fleet.replicas()})
        self.docket = Docket(self.samples, self.samples, SequentialJudge())
        tools = Tools(
            ledger=self.ledger,
            leases=self.ledger,
            registry=self.registry,
            docket=self.docket,
            clock=self.clock,
        )
        self._copies = Copies(run_folder(home) / SCORES_SOCKET)
        self.engine = Engine(
            tools,
            Ports(fleet=self.fleet, gateway=self.gateway),
            # The lock on the home folder proves that the last holder of this name is dead, so a
            # server that was killed has its lease back at once.
            holder=f"{socket.gethostname()}:{home}",
        )
        self.commands = Commands(self.ledger, self.registry, self.engine.book, self.clock)
        self._desk = Desk(self._copies, task=self._scoring, record=self.samples.record)
        self._stop = threading.Event()
        self._loop = threading.Thread(target=self._run, name="loop", daemon=True)

    def _gateway(self) -> EnvoyGateway:
        options = EnvoyOptions(
            stream_idle_s=self.settings.stream_idle_s,
            first_byte_timeout_s=self.settings.first_byte_timeout_s,
        )
        return EnvoyGateway(
            state_dir=self.home / "gateway",
            run_dir=run_folder(self.home),
            sink=self.samples.record,
            host=self.settings.gateway_host,
            port=self.settings.gateway_port,
            mode=self.settings.xds,
            options=options,
        )

    def _scoring(self, route: str) -> Task | None:
        """Returns what is to be scored on `route` now; None when nothing is."""
        known = self.engine.book().routes.get(route)
        release = known.active if known else None
        if release is None or not release.plan.scorers or release.plan.baseline is None:
            return None
        pools = self.gateway.view().pools
        plan = release.plan
        sides = (plan.candidate.digest, release.plan.baseline.digest)
        asked = {v: pools[route, v].endpoints for v in sides if (route, v) in pools}
        return Task(candidate=plan.candidate.digest, asked=asked, scorers=plan.scorers)

    def start(self) -> None:
        """Starts the loop, and to send."""
        self._loop.start()
        self.hooks.start()

    def _run(self) -> None:
        pruned = 0.0
        while not self._stop.wait(self.settings.tick_s):
            try:
                self.engine.tick()
                if time.monotonic() - pruned > _PRUNE_EVERY_S:
                    pruned = time.monotonic()
                    self.samples.prune(self.clock.now() - self.settings.keep_samples_s)
                    releases = self.engine.book().releases.values()
                    self.samples.keep_only({r.id for r in releases if not r.final})
            except Exception:  # noqa: BLE001 - the loop is the last that may stop
                _log.exception("a look of the engine failed; the next one tries again")

    def stop(self) -> None:
        """Stops in the safe order: the loop, the proxy (drained), the replicas, the files."""
        stop = self.settings.stop_replicas
        with ExitStack() as last:  # each step is taken, whatever became of the one before
            last.callback(self._owner.release)
            last.callback(self.ledger.close)
            last.callback(self.store.close)
            last.callback(self.samples.close)
            last.callback(self.fleet.close, stop=stop)
            if stop:
                last.callback(shutil.rmtree, run_folder(self.home), ignore_errors=True)
            last.callback(self.gateway.close, stop=stop)
            last.callback(self.engine.stop)
            last.callback(self._copies.close)
            last.callback(self._desk.close)
            last.callback(self.hooks.stop)
            self._stop.set()
            if self._loop.ident is not None:
                self._loop.join()


def open_store(home: Path, settings: Settings) -> Blobs:
    """Returns the backend of the store: where the settings say, or `store/` in the home folder."""
    where = settings.store or str(home / "store")
    return open_blobs(where, _backend_options(home, settings))


def _backend_options(home: Path, settings: Settings) -> BackendOptions:
    return BackendOptions(
        endpoint=settings.store_endpoint or None,
        region=settings.store_region or None,
        allow_http=settings.store_allow_http,
        cache_folder=home / "cache" if settings.store_cache_bytes else None,
        cache_bytes=settings.store_cache_bytes or 1,
        cache_only=(FOLDER,),
        key_file=Path(settings.store_key_file) if settings.store_key_file else None,
    )


def _probe(home: Path, settings: Settings) -> None:
    """Notes once what an object store can do; nothing rests on it."""
    note = home / "store.json"
    if not settings.store.startswith("s3://") or note.exists():
        return
    from lockgate.store.blobs.s3 import S3Blobs, probe

    blobs = S3Blobs(settings.store, _backend_options(home, settings))
    found = probe(blobs)
    body = {"store": settings.store, "conditional_create": found.conditional_create}
    write_durably(note, json.dumps(body).encode(), home)
    _log.info("the object store: %s", body)


def find_backups(url: str, options: Mapping[str, Any]) -> list[Backup]:
    """Returns the backups at `url`, oldest first; `options` are those of `BackendOptions`."""
    source = open_blobs(url, _options(options))
    try:
        return backups(source)
    finally:
        source.close()


def recover_home(
    home: Path, url: str, options: Mapping[str, Any], name: str | None,
    report: Callable[[int, int], None],
) -> Backup:  # fmt: skip
    """Brings a backup into a new home folder, while no server runs over it; see `recover`."""
    owner = _own(home)
    source = open_blobs(url, _options(options))
    store = open_store(home, load_settings(home))
    try:
        return recover(source, home, store, name=name, report=report)
    finally:
        source.close()
        store.close()
        owner.release()


def _options(options: Mapping[str, Any]) -> BackendOptions:
    key_file = options.get("key_file")
    return BackendOptions(
        endpoint=options.get("endpoint"),
        region=options.get("region"),
        allow_http=bool(options.get("allow_http")),
        key_file=Path(key_file) if key_file else None,
    )


def near_store(home: Path, settings: Settings) -> str | None:
    """Returns the folder where a client on this machine may store by itself, None for no such."""
    plain = not (settings.store_cache_bytes or settings.store_key_file)
    if not plain or "://" in settings.store or settings.store.startswith("memory:"):
        return None
    return str(Path(settings.store or home / "store").resolve())


def _own(home: Path) -> Lock:
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = Lock(home / "server.lock")
        taken = lock.take()
    except OSError as error:
        raise PermanentError(f"the home folder {home} can't be used: {error.strerror}") from error
    if not taken:
        raise ConflictError(
            f"another lockgate serves from {home}",
            hint="use that one, or start this one with --home FOLDER",
        )
    return lock
