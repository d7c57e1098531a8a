"""Verbs on the store: du, gc, optimize, repair, backup, recover, export, import."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lockgate.cli.main import Context
from lockgate.core.errors import IntegrityError, UsageError
from lockgate.core.names import check_model
from lockgate.core.units import size

Json = dict[str, Any]


@click.command()
@click.argument("model", required=False)
@click.pass_obj
def du(ctx: Context, model: str | None) -> None:
    """Show what each version (of MODEL) costs: as files, alone, shared with others."""
    with ctx.client() as client:
        found = client.get("/store/usage")
    rows = [row for row in found["versions"] if model in (None, row["model"])]
    ctx.output.value(found if model is None else rows, quiet=[r["digest"] for r in rows])
    ctx.output.table(
        ("model", "version", "files>", "alone>", "shared>", "stored as"),
        [
            (r["model"], f"v{r['number']}", size(r["size"]), size(r["alone"]), size(r["shared"]),
             ", ".join(f"{codec} {size(count)}" for codec, count in
                       sorted(r["codecs"].items(), key=lambda item: -item[1])))
            for r in rows
        ],
    )  # fmt: skip
    stored, whole = found["stored"], found["size"]
    part = f" ({100 * stored / whole:.1f} %)" if whole else ""
    ctx.output.say(
        f"{size(whole)} of versions in {size(stored)}{part}, {found['packs']} packs; "
        f"{size(found['loose'])} belong to no version"
    )
    ctx.output.note("alone: what removing the version would give back; shared: others need it too")


@click.command()
@click.option("--now", is_flag=True, help="Wait for no grace period: condemn and sweep at once.")
@click.option("--grace", type=float, metavar="SECONDS", help="How long garbage stays [setting].")
@click.pass_obj
def gc(ctx: Context, *, now: bool, grace: float | None) -> None:
    """Remove what no version needs. Safe beside publishes.

    What is garbage now is condemned, and swept by a later gc, once the grace period is over.
    """
    if now and grace:
        raise UsageError("--now and --grace contradict each other", hint="give one of them")
    with ctx.client() as client, ctx.output.counting("packs") as report:
        found = client.stream("/store/gc", {"grace_s": 0.0 if now else grace}, report)
    ctx.output.value(found)
    ctx.output.say(
        f"{found['swept']} objects swept, {size(found['freed'])} given back, "
        f"{found['rewritten']} packs written anew; {found['condemned']} objects condemned"
    )


@click.command()
@click.pass_obj
def optimize(ctx: Context) -> None:
    """Encode old versions anew where that saves a tenth or more, and join small packs."""
    with ctx.client() as client, ctx.output.counting("versions") as report:
        found = client.stream("/store/optimize", {}, report)
    ctx.output.value(found)
    ctx.output.say(
        f"{found['looked']} objects looked at, {found['encoded']} encoded anew: "
        f"{size(found['saved'])} saved; {found['packs']} packs fewer"
    )
    if found["encoded"]:
        ctx.output.hint("lockgate gc gives the bytes back")


def _backend(command: Any) -> Any:
    for option in (
        click.option("--endpoint", help="Address of an S3 server."),
        click.option("--region", help="Its region."),
        click.option("--allow-http", is_flag=True, help="Without TLS."),
        click.option("--key-file", help="Keys, when it is encrypted."),
    ):
        command = option(command)
    return command


@click.command()
@click.argument("source")
@_backend
@click.pass_obj
def repair(ctx: Context, /, source: str, **options: Any) -> None:
    """Take what is missing or damaged from SOURCE: another store, or a backup."""
    body = {"url": _place(source), **options}
    with ctx.client() as client, ctx.output.counting("objects") as report:
        found = client.stream("/store/repair", body, report)
    ctx.output.value(found)
    if found["lost"]:
        raise IntegrityError(
            f"{len(found['healed'])} objects were healed, {len(found['lost'])} are not whole "
            "there either",
            hint="try another replica, or publish the same folder again",
        )
    ctx.output.say(f"{len(found['healed'])} objects healed; every version is whole")


@click.command()
@click.argument("target")
@click.option("--keep", default=7, show_default=True, help="How many backups stay there.")
@_backend
@click.pass_obj
def backup(ctx: Context, /, target: str, keep: int, **options: Any) -> None:
    """Copy store and ledger to TARGET (a folder or URL); only what it lacks travels."""
    body = {"url": _place(target), "keep": keep, **options}
    with ctx.client() as client, ctx.output.counting("bytes") as report:
        found = client.stream("/store/backup", body, report)
    ctx.output.value(found, quiet=found["name"])
    ctx.output.say(
        f"backup {found['name']}: {found['packs']} packs, {size(found['bytes'])}, of which "
        f"{size(found['copied'])} travelled; the ledger up to event {found['position']}"
    )


@click.command()
@click.argument("source")
@click.option("--name", help="Which backup [the newest].")
@click.option("--list", "listed", is_flag=True, help="Show the backups and stop.")
@_backend
@click.pass_obj
def recover(
    ctx: Context, /, source: str, name: str | None, *, listed: bool, **options: Any
) -> None:
    """Bring a backup from SOURCE into this state folder, which must be new. No server runs."""
    from lockgate.server.wiring import find_backups, recover_home

    if listed:
        found = find_backups(_place(source), options)
        ctx.output.value([b.name for b in found], quiet=[b.name for b in found])
        ctx.output.table(
            ("backup", "packs>", "bytes>", "last event>"),
            [(b.name, len(b.packs), size(sum(b.packs.values())), b.position) for b in found],
        )
        return
    with ctx.output.counting("bytes") as report:
        done = recover_home(ctx.home, _place(source), options, name, report)
    ctx.output.value({"name": done.name, "home": str(ctx.home)}, quiet=done.name)
    ctx.output.say(f"backup {done.name} is in {ctx.home}: the ledger up to event {done.position}")
    ctx.output.hint("lockgate serve, then lockgate verify")


@click.command(name="export")
@click.argument("model")
@click.argument("version")
@click.argument("file", type=click.Path(path_type=Path))
@click.pass_obj
def export(ctx: Context, model: str, version: str, file: Path) -> None:
    """Write a VERSION of MODEL to FILE, one archive with all that it is made from.

    For plain files: lockgate restore.
    """
    with ctx.client() as client:
        client.download(f"/models/{check_model(model)}/versions/{version}/bundle", file)
    ctx.output.value({"file": str(file), "bytes": file.stat().st_size}, quiet=file)
    ctx.output.say(f"{model} {version} is in {file} ({size(file.stat().st_size)})")
    ctx.output.hint(f"elsewhere: lockgate import {file.name}")


@click.command(name="import")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--as", "model", help="Another name for the model.")
@click.pass_obj
def take(ctx: Context, file: Path, model: str | None) -> None:
    """Make a version of FILE, which export wrote. Every object is checked."""
    with ctx.client() as client:
        found = client.upload("/bundles", file, model=model and check_model(model))
    ctx.output.value(found, quiet=f"v{found['number']}")
    word = "is" if found["created"] else "was here already as"
    ctx.output.say(f"{file.name} {word} {found['model']} v{found['number']}")


@click.command()
@click.argument("model")
@click.argument("version")
@click.pass_obj
def sums(ctx: Context, model: str, version: str) -> None:
    """Print the SHA-256 of each file of a VERSION of MODEL, as sha256sum does."""
    path = f"/models/{check_model(model)}/versions/{version}/sums"
    with ctx.client() as client, ctx.output.counting("bytes") as report:
        found = client.stream(path, {}, report)
    ctx.output.value(found, quiet=list(found.values()))
    for name, value in sorted(found.items()):
        ctx.output.say(f"{value}  {name}")


def _place(text: str) -> str:
    """Returns a URL as it is, and a folder as an absolute path, for the server to find."""
    return text if "://" in text or text == "memory:" else str(Path(text).resolve())


COMMANDS = {
    "du": du, "gc": gc, "optimize": optimize, "repair": repair, "backup": backup,
    "recover": recover, "export": export, "import": take, "sums": sums,
}  # fmt: skip
