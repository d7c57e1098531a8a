"""The runtime `command`: any server that a spec's `argv` starts. No shell is involved."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lockgate.core.errors import UsageError
from lockgate.fleet.api import Job, Launch, Probe
from lockgate.fleet.runtimes.options import (
    check_names,
    environment,
    texts,
    thread_environment,
    whole,
)

_OPTIONS = ("argv", "env", "ready", "threads", "warmup")
_BRACES = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_HINT = "placeholders are {folder}, {model}, {version}, {host} and {port}; {{ and }} are braces"


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandRuntime:
    """Runs the list `argv`, its placeholders filled in.

    Options: `argv` (required), `ready` (path of the readiness probe, `/health`), `warmup` (one
    probe or a list: `{path, method, body}`), `env`, `threads` (sets OMP_NUM_THREADS and so on).
    """

    name: str = "command"

    def refuses(self, folder: Path) -> str | None:
        """Returns None when `folder` is one: the files are the command's business."""
        return None if folder.is_dir() else "there is no such folder"

    def launch(self, job: Job) -> Launch:
        """Returns how to run it; raises UsageError when an option is missing or wrong."""
        check_names(job.options, _OPTIONS, runtime=self.name)
        template = texts(job.options, "argv")
        if not template or not template[0]:
            raise UsageError(
                "the runtime 'command' needs the option 'argv', a list that starts with a program",
                hint='for example argv: ["./serve", "--port", "{port}", "{folder}"]',
            )
        if not any("{port}" in part for part in template):
            raise UsageError("no part of 'argv' has {port}: the replica must listen there")
        values = {
            "folder": str(job.folder),
            "model": job.model,
            "version": job.version,
            "host": job.endpoint.host,
            "port": str(job.endpoint.port),
        }
        env = environment(job.options)
        if "threads" in job.options:
            env = {**thread_environment(whole(job.options, "threads", 1, low=1, high=1024)), **env}
        return Launch(
            argv=tuple(_fill(part, values) for part in template),
            ready=Probe(path=_path(job.options.get("ready", "/health"), "ready")),
            env=env,
            warmups=_warmups(job.options.get("warmup")),
        )


def _fill(part: str, values: Mapping[str, str]) -> str:
    """Fills placeholders in; a value that has braces itself is not looked at again."""

    def put(found: re.Match[str]) -> str:
        if found[0] in ("{{", "}}"):
            return found[0][0]
        if found[1] is None:
            raise UsageError(f"argv has a brace without its partner in {part!r}", hint=_HINT)
        if found[1] not in values:
            raise UsageError(f"argv has the unknown placeholder {found[0]}", hint=_HINT)
        return values[found[1]]

    return _BRACES.sub(put, part)


def _path(value: object, option: str) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"/[!-~]*", value):
        raise UsageError(f"the option {option!r} must be a path that starts with '/'")
    return value


def _warmups(value: object) -> tuple[Probe, ...]:
    items = [] if value is None else value if isinstance(value, list | tuple) else [value]
    return tuple(_warmup(item) for item in items)


def _warmup(item: object) -> Probe:
    if isinstance(item, str):
        return Probe(path=_path(item, "warmup"))
    if not isinstance(item, Mapping) or set(item) - {"path", "method", "body"}:
        raise UsageError("a 'warmup' must be a path, or have 'path', 'method' and 'body'")
    body = item.get("body")
    method = item.get("method", "POST" if body is not None else "GET")
    if method not in ("GET", "POST", "PUT"):
        raise UsageError("the method of a 'warmup' must be GET, POST or PUT")
    if body is not None and not isinstance(body, Mapping):
        raise UsageError("the body of a 'warmup' must be a mapping; it is sent as JSON")
    return Probe(path=_path(item.get("path"), "warmup"), method=str(method), body=body)
