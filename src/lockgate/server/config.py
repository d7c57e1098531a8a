"""The machine's configuration: a small TOML file with a working default for every value."""

from __future__ import annotations

import os
import stat
import tempfile
import tomllib
from dataclasses import dataclass, fields
from hashlib import blake2s
from pathlib import Path
from typing import Literal

from lockgate.core.codec import from_json
from lockgate.core.errors import IntegrityError, PermanentError, UsageError

CONFIG_FILE = "config.toml"
_RANGES = {
    "port": (0, 65_535),
    "gateway_port": (0, 65_535),
    "tick_s": (0.01, 60.0),
    "keep_samples_s": (60.0, 3.2e9),
    "stream_idle_s": (1.0, 86_400.0),
    "first_byte_timeout_s": (0.1, 86_400.0),
    "store_cache_bytes": (0, 2**60),
    "hot_bytes": (0, 2**60),
    "gc_grace_s": (0.0, 3.2e9),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What `config.toml` in the home folder may say.

    `host`/`port`: the API; `gateway_host`/`gateway_port`: where callers send requests; port 0
    takes a free one. `xds`: how Envoy is configured (`ads`: gRPC with acknowledgement, `files`).
    `tick_s`: seconds between two looks of the engine. `keep_samples_s`: how long per-request rows
    are kept. `stream_idle_s`: how long a stream may be silent; `first_byte_timeout_s`: how long a
    replica may be, before another one is tried. `stop_replicas`: false leaves replicas and proxy
    running when the server is stopped, for the next one to adopt. `store`: a folder or a URL
    (`s3://bucket/prefix`) for the packs, `store/` in the home folder when empty; `store_endpoint`,
    `store_region`, `store_allow_http`: how to reach it; `store_cache_bytes`: how much of it is
    kept on this machine's disk; `store_key_file`: encrypts it. `hot_bytes`: how many bytes of
    versions that serve no more stay decoded, so that going back moves nothing. `gc_grace_s`: how
    long garbage stays.
    """

    host: str = "127.0.0.1"
    port: int = 8470
    gateway_host: str = "127.0.0.1"
    gateway_port: int = 8480
    xds: Literal["ads", "files"] = "ads"
    tick_s: float = 0.25
    keep_samples_s: float = 604_800.0
    stream_idle_s: float = 600.0
    first_byte_timeout_s: float = 300.0
    stop_replicas: bool = True
    store: str = ""
    store_endpoint: str = ""
    store_region: str = ""
    store_allow_http: bool = False
    store_cache_bytes: int = 0
    store_key_file: str = ""
    hot_bytes: int = 200_000_000_000
    gc_grace_s: float = 86_400.0


def load_settings(home: Path, **overrides: object) -> Settings:
    """Returns the settings of `home`; `overrides` (None: not given) come from the command line.

    Raises UsageError, naming the file, for anything that is not a setting.
    """
    path = home / CONFIG_FILE
    values: dict[str, object] = {}
    if path.exists():
        try:
            values = tomllib.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"{path} can't be read: {error}") from error
    values |= {name: value for name, value in overrides.items() if value is not None}
    known = {field.name for field in fields(Settings)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise UsageError(
            f"{path}: there is no setting {unknown[0]!r}",
            hint=f"settings are {', '.join(sorted(known))}",
        )
    try:
        settings = from_json(Settings, values)
    except IntegrityError as error:
        raise UsageError(f"{path}: {error.message}") from error
    for name, (low, high) in _RANGES.items():
        value = getattr(settings, name)
        if not low <= value <= high:
            raise UsageError(f"{path}: {name} is {value}, it must be from {low:g} to {high:g}")
    return settings


def run_folder(home: Path) -> Path:
    """Returns the folder for the sockets of `home`: short, stable, and open to this user alone.

    Raises PermanentError when somebody else made it first.
    """
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    mine = base / f"lockgate-{os.getuid()}"
    name = blake2s(os.fsencode(home.resolve()), digest_size=6).hexdigest()
    for folder in (mine, mine / name):
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        private = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
        if not private or found.st_mode & 0o077:
            raise PermanentError(
                f"{folder} is not a private folder of this user",
                hint="remove it, or set XDG_RUNTIME_DIR to a folder of your own",
            )
    return mine / name
