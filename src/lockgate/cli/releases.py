"""Verbs that make releases: plan, release, releases; and how a release is waited for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from lockgate.cli.main import Context
from lockgate.cli.views import plan_lines, release_tree, timeline
from lockgate.client.client import Client
from lockgate.core.errors import (
    GateRefusedError,
    HeldError,
    LockgateError,
    NotFoundError,
    RolledBackError,
    UsageError,
)
from lockgate.core.names import check_model, split_reference
from lockgate.core.units import parse_duration

Json = dict[str, Any]
PENDING = 9
"""Exit code of `plan --exit-code` when there is something to do."""


def asked(spec: str, version: str | None, target: str, replicas: int | None,
          runtime: str | None) -> Json:  # fmt: skip
    """Returns what to ask the server for: a spec's text, or a model and version.

    Raises NotFoundError for a spec that is not there, UsageError when no version is named.
    """
    path = Path(spec)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if not path.is_file():
            raise NotFoundError(f"there is no spec {spec}")
        try:
            return {"yaml": path.read_text("utf-8")}
        except UnicodeDecodeError as error:
            raise UsageError(f"{spec} is not UTF-8 text") from error
    model, inline = split_reference(spec)
    chosen = version or inline
    if chosen is None:
        raise UsageError(f"which version of {model}?", hint=f"lockgate models {model} lists them")
    body: Json = {"model": model, "version": chosen, "target": target, "replicas": replicas}
    return {**body, "runtime": {"name": runtime} if runtime else None}


@click.command()
@click.argument("spec")
@click.argument("version", required=False)
@click.option("--to", "target", default="local", show_default=True, help="Target.")
@click.option("--replicas", type=click.IntRange(1, 1000), help="Replicas of the version.")
@click.option("--runtime", help="Name the runtime instead of letting the files decide.")
@click.option("--exit-code", is_flag=True, help=f"Exit with {PENDING} when there is a change.")
@click.pass_obj
def plan(
    ctx: Context,
    spec: str,
    version: str | None,
    *,
    target: str,
    replicas: int | None,
    runtime: str | None,
    exit_code: bool,
) -> int:
    """Show what a release by SPEC (a YAML file, or MODEL VERSION) would do; change nothing."""
    with ctx.client() as client:
        found = client.plan(asked(spec, version, target, replicas, runtime))
    ctx.output.value(found, quiet=found["digest"])
    if not found["changes"]:
        ctx.output.say(f"v{found['candidate']['number']} serves already: nothing to do")
        return 0
    for line in plan_lines(found):
        ctx.output.say(line)
    ctx.output.say(f"  plan       {found['digest']}")
    ctx.output.hint(
        f"lockgate release {spec} {version or ''} --plan {found['digest']}".replace("  ", " ")
    )
    return PENDING if exit_code else 0


@click.command()
@click.argument("spec")
@click.argument("version", required=False)
@click.option("--to", "target", default="local", show_default=True, help="Target.")
@click.option("--replicas", type=click.IntRange(1, 1000), help="Replicas of the version.")
@click.option("--runtime", help="Name the runtime instead of letting the files decide.")
@click.option("--plan", "digest", help="Do exactly this plan, or nothing if it became stale.")
@click.option("--plan-only", is_flag=True, help="Show the plan and stop.")
@click.option("--watch", "watching", is_flag=True, help="Follow it, drawn, until it is done.")
@click.option("--wait/--no-wait", default=None, help="Wait until it is done or held.")
@click.option("--timeout", help="Wait no longer than this (exit code 13).")
@click.option("--ok-when", type=click.Choice(["held"]), help="Held is fine too (exit code 0).")
@click.option("--supersede", is_flag=True, help="Turn back what is under way, and follow it.")
@click.option("--reason", default="", help="Why, for the record.")
@click.pass_context
def release(
    click_context: click.Context,
    spec: str,
    version: str | None,
    *,
    target: str,
    replicas: int | None,
    runtime: str | None,
    digest: str | None,
    plan_only: bool,
    watching: bool,
    wait: bool | None,
    timeout: str | None,
    ok_when: str | None,
    supersede: bool,
    reason: str,
) -> int:
    """Release by SPEC (a YAML file), or MODEL VERSION with the default canary.

    The first release of a model is waited for; others with --wait or --watch.
    """
    if plan_only:
        found: int = click_context.invoke(
            plan, spec=spec, version=version, target=target, replicas=replicas, runtime=runtime,
            exit_code=False,
        )  # fmt: skip
        return found
    ctx: Context = click_context.obj
    body = asked(spec, version, target, replicas, runtime)
    limit = parse_duration(timeout) if timeout else None
    with ctx.client() as client:
        opened = client.release({**body, "plan": digest, "reason": reason, "supersede": supersede})
        return _opened(ctx, client, opened, watching, wait, limit, ok_when)


def _opened(ctx: Context, client: Client, opened: Json, watching: bool, wait: bool | None,
            limit: float | None, ok_when: str | None) -> int:  # fmt: skip
    name, made = opened["release"], opened["plan"]
    if name is None:
        ctx.output.value(opened)
        ctx.output.say(f"v{made['candidate']['number']} of {made['model']} serves already")
        return 0
    first = made["baseline"] is None and wait is None
    if not (watching or wait or first):
        ctx.output.value(opened, quiet=name)
        ctx.output.say(f"{name}: {made['model']} v{made['candidate']['number']} is on its way")
        ctx.output.hint(f"lockgate watch {name}")
        return 0
    view = follow(ctx, client, name, timeout=limit, drawn=watching)
    if view["phase"] == "promoted":
        _promoted(ctx, view)
    return outcome(view, ok_when)


def _promoted(ctx: Context, view: Json) -> None:
    address, model = view["address"], view["model"]
    ctx.output.say(f"{model} v{view['candidate']['number']} serves", style="green")
    ctx.output.say(f'  at   {address}/{model}/…   (or {address}/v1/… with "model": "{model}")')
    ctx.output.hint(f"lockgate explain {view['id']}")


def follow(ctx: Context, client: Client, name: str, *, timeout: float | None, drawn: bool) -> Json:
    """Follows a release until it is final or held, and returns its last view.

    On a terminal it is drawn in place when `drawn`; else each event is a line. In json mode each
    view is a line when `drawn`, and only the last one otherwise.
    """
    views = client.watch(name, timeout=timeout, until=settled)
    try:
        return _follow(ctx, views, drawn)
    except KeyboardInterrupt:
        ctx.output.note(f"{name} goes on without you: lockgate watch {name}")
        raise


def _follow(ctx: Context, views: Iterator[Json], drawn: bool) -> Json:
    view: Json = {}
    told = 0
    if drawn and ctx.output.live:
        with ctx.output.watching() as draw:
            for view in views:
                draw(release_tree(view))
        ctx.output.show(release_tree(view))
        return view
    for view in views:
        if ctx.output.mode == "json" and drawn:
            ctx.output.value(view)
        for line in timeline(view)[told:]:
            ctx.output.note(line)
        told = len(view["timeline"])
    if ctx.output.mode != "json" or not drawn:
        ctx.output.value(view, quiet=view["phase"])
    return view


def settled(view: Json) -> bool:
    """Says whether waiting longer is of no use by itself: final, or held."""
    return bool(view["final"] or view["held"])


def outcome(view: Json, ok_when: str | None = None) -> int:
    """Returns 0 for a release that did what was asked; raises its error otherwise."""
    name, held = view["id"], view["held"]
    if held and not view["final"]:
        if ok_when == "held":
            return 0
        raise HeldError(f"{name} is held ({held['because']}): {held['reason']}",
                        hint=f"lockgate explain {name}")  # fmt: skip
    if view["phase"] == "reverted":
        why = view["rollback"]["reason"] if view["rollback"] else ""
        raise RolledBackError(f"{name} was rolled back: {why}", hint=f"lockgate explain {name}")
    if view["phase"] == "refused":
        raise GateRefusedError(f"{name} was refused: {view['note']}")
    if view["phase"] == "failed":
        raise LockgateError(f"{name} failed before it got traffic: {view['note']}",
                            hint=f"lockgate explain {name}")  # fmt: skip
    return 0


@click.command()
@click.option("--model", help="Of this model only.")
@click.pass_obj
def releases(ctx: Context, *, model: str | None) -> None:
    """List releases, newest first."""
    with ctx.client() as client:
        found = client.get("/releases")
    if model:
        found = [row for row in found if row["model"] == check_model(model)]
    ctx.output.value(found, quiet=[row["id"] for row in found])
    ctx.output.table(
        ("release", "model", "what", "target", "phase", "at", "opened", "by"),
        [_row(row) for row in found],
    )
    if not found:
        ctx.output.hint("lockgate release owner/name v1 --to local")


def _row(row: Json) -> tuple[object, ...]:
    before = f"v{row['baseline']['number']} → " if row["baseline"] else ""
    what = f"{before}v{row['candidate']['number']}" + (
        " (rollback)" if row["intent"] == "rollback" else ""
    )
    phase = f"held ({row['held']['because']})" if row["held"] else row["phase"]
    at = "" if row["final"] else row["percent"]
    return (row["id"], row["model"], what, row["target"], phase, at, row["opened_at"][:19],
            row["opened_by"])  # fmt: skip


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--model", required=True, help="The model that the spec shall be for.")
@click.option("--version", required=True, help="The version: its number, an alias or a digest.")
@click.pass_obj
def convert(ctx: Context, file: Path, *, model: str, version: str) -> None:
    """Print FILE (an Argo Rollout or a Flagger Canary) as a release spec of ours.

    What could not be carried stands on top, as comments.
    """
    from lockgate.release.spec.foreign import carry

    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise NotFoundError(f"{file} can't be read as text: {error}") from error
    found = carry(text, model=check_model(model), version=version)
    ctx.output.value({"spec": dict(found.spec), "left": list(found.left)}, quiet=found.text)
    ctx.output.say(found.text.rstrip())


COMMANDS = {"convert": convert, "plan": plan, "release": release, "releases": releases}
