"""The verb on signed messages: hooks."""

from __future__ import annotations

from typing import Any

import click

from lockgate.cli.main import Context
from lockgate.core.errors import UsageError

Json = dict[str, Any]


@click.command()
@click.argument("action", required=False, type=click.Choice(["test"]))
@click.argument("name", required=False)
@click.pass_obj
def hooks(ctx: Context, action: str | None, name: str | None) -> None:
    """List hooks, what they delivered and what waits; with 'test NAME', send a test message."""
    with ctx.client() as client:
        if action is None:
            _list(ctx, client.get("/hooks"))
            return
        if name is None:
            raise UsageError("which hook?", hint="lockgate hooks test NAME; lockgate hooks lists")
        found = client.post(f"/hooks/{name}/test", {})
    ctx.output.value(found, quiet=name)
    ctx.output.say(
        f"{name} took it: {found['status']} after {found['seconds']:.2f} s", style="green"
    )


def _list(ctx: Context, found: Json) -> None:
    ctx.output.value(found, quiet=[row["name"] for side in ("out", "in") for row in found[side]])
    ctx.output.table(
        ("hook", "to", "events", "delivered", "at", "waiting>", "given up>", "trouble"),
        [_out(row) for row in found["out"]],
    )
    ctx.output.table(
        ("hook", "reports of", "reports>"),
        [(row["name"], ", ".join(row["models"]), row["reports"]) for row in found["in"]],
    )
    if not found["out"] and not found["in"]:
        ctx.output.hint("hooks.yaml in the state folder names hooks: docs/ci.md")


def _out(row: Json) -> tuple[object, ...]:
    trouble = row["error"]
    if row["failing_since"]:
        trouble = f"{row['attempts']} failed since {row['failing_since'][:19]}: {trouble}"
    given_up = f"{row['given_up']} (last #{row['given_up_last']})" if row["given_up"] else "0"
    return (
        row["name"], row["to"], ", ".join(row["events"]),
        f"#{row['delivered']}" if row["delivered"] else "–", (row["delivered_at"] or "")[:19],
        row["waiting"], given_up, trouble,
    )  # fmt: skip


COMMANDS = {"hooks": hooks}
