"""Verbs on versions: publish, models, show, diff, lineage, verify, restore, alias."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import click

from lockgate.cli.main import Context
from lockgate.core.digests import short
from lockgate.core.errors import IntegrityError, UsageError
from lockgate.core.events import Edge, Relation
from lockgate.core.names import check_model, split_reference
from lockgate.core.units import size
from lockgate.host.memory import keep_freed_memory

Json = dict[str, Any]
_SHOWN = 40


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("model")
@click.option("--label", "labels", multiple=True, metavar="NAME=TEXT", help="A free label.")
@click.option("--from", "parents", multiple=True, metavar="RELATION=MODEL:VERSION",
              help="Lineage, as trained-from=acme/base:v3.")  # fmt: skip
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Leave matching files out.")
@click.option("--source-revision", help="Where the code stood [the folder's git commit].")
@click.pass_obj
def publish(
    ctx: Context,
    folder: Path,
    model: str,
    *,
    labels: Sequence[str],
    parents: Sequence[str],
    exclude: Sequence[str],
    source_revision: str | None,
) -> None:
    """Publish FOLDER as the next version of MODEL (owner/name).

    The same content again is the same version. A publish that was interrupted goes on.
    """
    from lockgate.registry.environment import build_environment, key_packages
    from lockgate.registry.environment import source_revision as git_revision
    from lockgate.registry.publish import publish as recipe
    from lockgate.registry.service import Details

    check_model(model)
    keep_freed_memory()
    with ctx.client() as client, ctx.output.progress() as report:
        objects = client.objects()
        details = Details(
            environment=build_environment(),
            dependencies=key_packages(),
            source_revision=source_revision or git_revision(folder),
            labels=dict(_label(label) for label in labels),
            lineage=tuple(_edge(parent, client.get) for parent in parents),
        )
        done = recipe(
            folder,
            model,
            objects=objects,
            shelf=client,
            details=details,
            actor=ctx.actor,
            exclude=exclude,
            report=report,
        )
    found = done.version.published
    view = {"model": model, "version": f"v{found.number}", "digest": found.digest,
            "created": done.created, "bytes": found.bytes_total,
            "bytes_new": found.bytes_new if done.created else 0}  # fmt: skip
    ctx.output.value(view, quiet=f"v{found.number}")
    shared = found.bytes_total - found.bytes_new
    if done.created:
        ctx.output.say(f"{model} v{found.number}", style="bold green")
        ctx.output.say(f"  digest   {found.digest}")
        ctx.output.say(f"  files    {found.artifacts} ({found.tensors} tensors)")
        stored = getattr(objects, "stored", None)  # only a near store knows
        as_frames = "" if stored is None else f", stored in {size(stored)}"
        ctx.output.say(f"  bytes    {size(found.bytes_new)} new{as_frames}, {size(shared)} shared")
    else:
        ctx.output.say(f"{model} v{found.number} is this content already ({short(found.digest)})")
    ctx.output.hint(f"lockgate release {model} v{found.number} --to local")


def _label(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"{text!r} is not a label", hint="write it like --label team=search")
    return name, value


def _edge(text: str, get: Any) -> Edge:
    relation, equals, reference = text.partition("=")
    if not equals or relation not in get_args(Relation):
        known = ", ".join(get_args(Relation))
        raise UsageError(f"{text!r} is no lineage", hint=f"RELATION=MODEL:VERSION with {known}")
    model, version = split_reference(reference)
    if version is None:
        raise UsageError(f"which version of {model}?", hint=f"write it as {relation}={model}:v1")
    found = get(f"/models/{model}/versions/{version}")
    return Edge(relation=relation, model=model, digest=found["digest"])  # type: ignore[arg-type]


def reference(model: str, version: str | None) -> tuple[str, str]:
    """Reads `acme/chat v3` or `acme/chat:v3`; raises UsageError when no version is named."""
    name, inline = split_reference(model)
    chosen = version or inline
    if chosen is None:
        raise UsageError(f"which version of {name}?", hint=f"lockgate models {name} lists them")
    return name, chosen


@click.command()
@click.argument("model", required=False)
@click.pass_obj
def models(ctx: Context, model: str | None) -> None:
    """List models, or the versions of MODEL."""
    with ctx.client() as client:
        found = client.get(f"/models/{check_model(model)}" if model else "/models")
    names = [f"v{v['number']}" for v in found["versions"]] if model else [m["name"] for m in found]
    ctx.output.value(found, quiet=names)
    if model:
        ctx.output.table(
            ("version", "digest", "published", "by", "bytes>", "new>", "aliases", "labels"),
            [_version_row(row) for row in found["versions"]],
        )
        return
    ctx.output.table(
        ("model", "versions>", "newest", "published", "aliases"),
        [
            (m["name"], len(m["versions"]), f"v{m['versions'][0]['number']}",
             m["versions"][0]["at"][:19],
             ", ".join(f"{name}=v{number}" for name, number in sorted(m["aliases"].items())))
            for m in found
        ],
    )  # fmt: skip
    if not found:
        ctx.output.hint("lockgate publish FOLDER owner/name")


def _version_row(row: Json) -> tuple[object, ...]:
    labels = ", ".join(f"{name}={text}" for name, text in sorted(row["labels"].items()))
    return (
        f"v{row['number']}", short(row["digest"]), row["at"][:19], row["publisher"],
        size(row["bytes_total"]), size(row["bytes_new"]), ", ".join(row["aliases"]), labels,
    )  # fmt: skip


@click.command()
@click.argument("model")
@click.argument("version", required=False)
@click.pass_obj
def show(ctx: Context, model: str, version: str | None) -> None:
    """Show a VERSION (number, alias or digest) of MODEL: files, origin, lineage."""
    name, chosen = reference(model, version)
    with ctx.client() as client:
        found = client.get(f"/models/{name}/versions/{chosen}")
    ctx.output.value(found, quiet=found["digest"])
    say = ctx.output.say
    say(f"{name} v{found['number']}  {', '.join(found['aliases'])}", style="bold")
    say(f"  digest     {found['digest']}")
    say(f"  published  {found['at']} by {found['publisher']}")
    say(f"  bytes      {size(found['bytes_total'])}, {size(found['bytes_new'])} of them new")
    say(f"  source     {found['source_revision'] or 'unknown'}")
    for title in ("environment", "labels"):
        said = ", ".join(f"{key}={value}" for key, value in sorted(found[title].items()))
        say(f"  {title:<10} {said or '–'}")
    say(f"  packages   {', '.join(found['dependencies']) or '–'}")
    for edge in found["lineage"]:
        say(f"  {edge['relation']:<10} {edge['model']} {short(edge['digest'])}")
    for told in found["reported"]:
        say(f"  training   {_report(told)}")
    ctx.output.table(
        ("file", "bytes>", "tensors>", "digest"),
        [
            (a["path"], f"{a['size']:,}", _tensors(a), short(a["digest"]))
            for a in found["manifest"]["artifacts"]
        ],
    )


def _report(told: Json) -> str:
    numbers = ", ".join(f"{name}={value:.5g}" for name, value in sorted(told["metrics"].items()))
    parts = (f"{told['run']} {told['status']}", numbers, told["url"] or "", f"by {told['hook']}")
    return "  ".join(part for part in parts if part)


def _tensors(artifact: Json) -> str:
    names = {piece["tensor"]["name"] for piece in artifact["pieces"] if piece["tensor"]}
    return str(len(names)) if names else ""


@click.command()
@click.argument("model")
@click.argument("before")
@click.argument("after")
@click.pass_obj
def diff(ctx: Context, model: str, before: str, after: str) -> None:
    """Show what changed in MODEL between versions BEFORE and AFTER: files, tensors, bytes."""
    with ctx.client() as client:
        found = client.get(f"/models/{check_model(model)}/diff", before=before, after=after)
    ctx.output.value(found)
    changed = [row for row in found["files"] if row["change"] != "same"]
    ctx.output.table(
        ("file", "change", "before>", "after>", "shared>"),
        [(r["path"], r["change"], f"{r['size_before']:,}", f"{r['size_after']:,}",
          f"{r['shared']:,}") for r in changed],
    )  # fmt: skip
    tensors = found["tensors"]
    ctx.output.table(
        ("tensor", "change", "bytes>"),
        [(f"{t['path']}: {t['name']}", t["change"], f"{t['size']:,}") for t in tensors[:_SHOWN]],
    )
    if len(tensors) > _SHOWN:
        ctx.output.note(f"… and {len(tensors) - _SHOWN} more tensors (--json has them all)")
    same = len(found["files"]) - len(changed)
    ctx.output.say(
        f"{len(changed)} files and {len(tensors)} tensors differ, {same} files and "
        f"{found['tensors_same']} tensors are the same; {size(found['bytes_new'])} of "
        f"{size(found['bytes_after'])} are new in v{found['after']}"
    )


@click.command()
@click.argument("model")
@click.argument("version", required=False)
@click.pass_obj
def lineage(ctx: Context, model: str, version: str | None) -> None:
    """Show what a VERSION of MODEL came from, and what came from it."""
    name, chosen = reference(model, version)
    with ctx.client() as client:
        found = client.get(f"/models/{name}/versions/{chosen}/lineage")
    ctx.output.value(found)
    ctx.output.say(f"{name} v{found['version']} ({short(found['digest'])})", style="bold")
    for row in found["from"]:
        number = f"v{row['number']}" if row["number"] else short(row["digest"])
        ctx.output.say(f"{'  ' * row['depth']}← {row['relation']} {row['model']} {number}")
    for row in found["into"]:
        ctx.output.say(f"  → {row['model']} v{row['number']}")


@click.command()
@click.argument("model", required=False)
@click.argument("version", required=False)
@click.option("--sample", type=click.FloatRange(0, 1, min_open=True), default=1.0,
              help="Part of the whole store's objects to read [1].")  # fmt: skip
@click.option("--seed", default=0, help="Which ones are picked [0].")
@click.pass_obj
def verify(ctx: Context, model: str | None, version: str | None, sample: float, seed: int) -> None:
    """Read every byte of a VERSION of MODEL, or of all versions, and compare it with its digest."""
    if model is None:
        _verify_all(ctx, sample, seed)
        return
    name, chosen = reference(model, version)
    with ctx.client() as client:
        found = client.get(f"/models/{name}/versions/{chosen}/damages")
    ctx.output.value(found)
    if found["damages"]:
        lines = "\n".join(f"  {damage['message']}" for damage in found["damages"])
        raise IntegrityError(
            f"{name} v{found['version']} is hurt in {len(found['damages'])} files:\n{lines}",
            hint="lockgate repair takes it from a backup; publishing the folder again heals too",
        )
    ctx.output.say(f"{name} v{found['version']} is sound: every byte has its digest")


def _verify_all(ctx: Context, sample: float, seed: int) -> None:
    with ctx.client() as client, ctx.output.counting("objects") as report:
        found = client.stream("/store/verify", {"sample": sample, "seed": seed}, report)
    ctx.output.value(found)
    if found["hurt"]:
        lines = "\n".join(
            f"  {h['model']} v{h['number']}  {h['path']}: {h['message']}"
            for h in found["hurt"][:_SHOWN]
        )
        raise IntegrityError(
            f"{len(found['hurt'])} files of versions are hurt:\n{lines}",
            hint="lockgate repair takes what is damaged from a backup or another store",
        )
    ctx.output.say(f"{found['checked']} of {found['objects']} objects read: every one is sound")


@click.command()
@click.argument("model")
@click.argument("version")
@click.argument("folder", type=click.Path(path_type=Path))
@click.pass_obj
def restore(ctx: Context, model: str, version: str, folder: Path) -> None:
    """Write a VERSION of MODEL to FOLDER (new or empty), bit for bit, every byte checked."""
    from lockgate.core.digests import Digest
    from lockgate.registry.manifest import parse
    from lockgate.registry.restore import restore as recipe

    keep_freed_memory()
    with ctx.client() as client, ctx.output.progress() as report:
        found = client.get(f"/models/{check_model(model)}/versions/{version}")
        objects = client.objects()
        manifest = parse(bytes(objects.get(Digest(found["digest"]))))
        recipe(manifest, folder, objects, report)
        objects.flush(())
    ctx.output.value({"folder": str(folder), "digest": found["digest"]}, quiet=folder)
    ctx.output.say(f"{model} v{found['number']} is in {folder} ({size(manifest.size)})")


@click.command()
@click.argument("model")
@click.argument("name")
@click.argument("version")
@click.option("--reason", default="", help="Why, for the record.")
@click.pass_obj
def alias(ctx: Context, model: str, name: str, version: str, *, reason: str) -> None:
    """Make NAME (say: champion) an alias of a VERSION of MODEL."""
    with ctx.client() as client:
        path = f"/models/{check_model(model)}/aliases/{name}"
        found = client.request("PUT", path, body={"version": version, "reason": reason}).json()
    ctx.output.value(found, quiet=f"v{found['number']}")
    ctx.output.say(f"{name} of {model} is v{found['number']}")


COMMANDS = {
    "publish": publish, "models": models, "show": show, "diff": diff, "lineage": lineage,
    "verify": verify, "restore": restore, "alias": alias,
}  # fmt: skip
