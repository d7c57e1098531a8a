"""Verbs on a release: watch, explain, approve, hold, resume, promote, rollback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lockgate.cli.main import Context
from lockgate.cli.releases import follow, outcome
from lockgate.cli.views import check_line, release_tree
from lockgate.core.names import check_model
from lockgate.core.units import duration, parse_duration

Json = dict[str, Any]


@click.command()
@click.argument("release")
@click.option("--timeout", help="Watch no longer than this (exit code 13).")
@click.option("--ok-when", type=click.Choice(["held"]), help="Held is fine too (exit code 0).")
@click.pass_obj
def watch(ctx: Context, release: str, *, timeout: str | None, ok_when: str | None) -> int:
    """Follow RELEASE until it is done or held; the exit code says how it ended."""
    limit = parse_duration(timeout) if timeout else None
    with ctx.client() as client:
        view = follow(ctx, client, release, timeout=limit, drawn=True)
    return outcome(view, ok_when)


@click.command()
@click.argument("release")
@click.pass_obj
def explain(ctx: Context, release: str) -> None:
    """Show the reasoning behind RELEASE: every check with its numbers, every event."""
    with ctx.client() as client:
        view = client.explain(release)
    ctx.output.value(view, quiet=view["phase"])
    ctx.output.show(release_tree(view))
    if view["reason"]:
        ctx.output.say(f"asked for because: {view['reason']}")
    ctx.output.table(
        ("when", "who", "what"),
        [(e["at"][11:23], e["actor"], e["text"]) for e in view["timeline"]],
    )


def _verb(name: str, summary: str) -> click.Command:
    @click.command(name=name, help=summary)
    @click.argument("release")
    @click.option("--reason", required=True, help="Why, for the record.")
    @click.pass_obj
    def command(ctx: Context, release: str, *, reason: str) -> None:
        with ctx.client() as client:
            found = client.tell(release, name, reason)
        ctx.output.value(found, quiet=release)
        ctx.output.say(f"{release}: {name} is on record")
        ctx.output.hint(f"lockgate watch {release}")

    return command


@click.command()
@click.argument("model")
@click.option("--reason", required=True, help="Why, for the record.")
@click.option("--version", help="Back to this version [the one before].")
@click.option("--to", "target", default="local", show_default=True, help="Target.")
@click.option("--wait/--no-wait", default=True, help="Wait until traffic is back.")
@click.option("--timeout", default="10m", show_default=True, help="Wait no longer than this.")
@click.pass_obj
def rollback(
    ctx: Context,
    model: str,
    *,
    reason: str,
    version: str | None,
    target: str,
    wait: bool,
    timeout: str,
) -> None:
    """Go back to the version of MODEL that served before: traffic first, no questions."""
    with ctx.client() as client:
        name = client.rollback(check_model(model), reason=reason, target=target, version=version)
        if not wait:
            ctx.output.value({"release": name}, quiet=name)
            ctx.output.say(f"{name} goes back")
            ctx.output.hint(f"lockgate watch {name}")
            return
        view = follow(ctx, client, name, timeout=parse_duration(timeout), drawn=False)
    if view["phase"] == "reverted":
        ctx.output.say(f"{model} is back at v{view['baseline']['number']}", style="green")
    elif view["phase"] == "failed" and view["intent"] == "release":
        ctx.output.say(f"{name} was stopped before it got traffic", style="green")
    else:
        outcome(view)
        ctx.output.say(f"{model} is back at v{view['candidate']['number']}", style="green")
    ctx.output.hint(f"lockgate explain {name}")


@click.command()
@click.argument("release")
@click.option("--spec", type=click.Path(path_type=Path), help="Judge by this spec's checks.")
@click.pass_obj
def replay(ctx: Context, release: str, *, spec: Path | None) -> None:
    """Judge the samples of RELEASE anew: what would other checks have said, and when."""
    with ctx.client() as client:
        found = client.replay(release, spec.read_text("utf-8") if spec else None)
    verdict = found["verdict"]
    ctx.output.value(found, quiet=verdict["outcome"] if verdict else "hold")
    ctx.output.table(
        ("after", "requests", "verdict", "because"),
        [(duration(t["after_s"]), f"{t['requests']:,}", t["outcome"], t["reason"])
         for t in found["turns"]],
    )  # fmt: skip
    for check in verdict["checks"] if verdict else ():
        ctx.output.show(check_line(check))


@click.command()
@click.argument("model")
@click.option("--reason", required=True, help="Why, for the record.")
@click.option("--for", "lasts", help="End by itself after this long [until 'unblock'].")
@click.option("--to", "target", default="local", show_default=True, help="Target.")
@click.pass_obj
def block(ctx: Context, model: str, *, reason: str, lasts: str | None, target: str) -> None:
    """Let no release of MODEL go forward; going back stays possible."""
    seconds = parse_duration(lasts) if lasts else None
    with ctx.client() as client:
        route = client.block(check_model(model), reason=reason, target=target, seconds=seconds)
    ctx.output.value({"route": route}, quiet=route)
    ctx.output.say(f"{route} is blocked" + (f" for {lasts}" if lasts else ""))
    ctx.output.hint(f"lockgate unblock {model} --reason …")


@click.command()
@click.argument("model")
@click.option("--reason", required=True, help="Why, for the record.")
@click.option("--to", "target", default="local", show_default=True, help="Target.")
@click.pass_obj
def unblock(ctx: Context, model: str, *, reason: str, target: str) -> None:
    """End the block of MODEL: its releases go on."""
    with ctx.client() as client:
        route = client.unblock(check_model(model), reason=reason, target=target)
    ctx.output.value({"route": route}, quiet=route)
    ctx.output.say(f"{route} is no longer blocked")


COMMANDS = {
    "replay": replay,
    "block": block,
    "unblock": unblock,
    "watch": watch,
    "explain": explain,
    "approve": _verb("approve", "Give your word for the next step of RELEASE that needs one."),
    "hold": _verb("hold", "Keep RELEASE where it is until somebody resumes it."),
    "resume": _verb("resume", "End the hold of RELEASE."),
    "promote": _verb("promote", "Skip what is left of RELEASE's steps."),
    "rollback": rollback,
}
