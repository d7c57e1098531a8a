"""Verbs that run things: serve, demo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from lockgate.cli.main import Context

if TYPE_CHECKING:
    from lockgate.client.client import Client


@click.command()
@click.option("--host", help="Address of the API [127.0.0.1].")
@click.option("--port", type=click.IntRange(0, 65_535), help="Port of the API [8470].")
@click.option("--gateway-host", help="Address for callers [127.0.0.1].")
@click.option("--gateway-port", type=click.IntRange(0, 65_535), help="Port for callers [8480].")
@click.pass_obj
def serve(
    ctx: Context,
    *,
    host: str | None,
    port: int | None,
    gateway_host: str | None,
    gateway_port: int | None,
) -> int:
    """Run the control plane and the gateway here, until Ctrl-C. State is in --home."""
    from lockgate.server.config import load_settings
    from lockgate.server.main import run_server

    settings = load_settings(
        ctx.home, host=host, port=port, gateway_host=gateway_host, gateway_port=gateway_port
    )
    run_server(ctx.home, settings, tell=ctx.output.note)
    return 0


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("lockgate-demo"),
              show_default=True, help="Folder for the demo's state and its report.")  # fmt: skip
@click.option("--quick", is_flag=True, help="A shorter story, for tests.")
@click.pass_obj
def demo(ctx: Context, *, out: Path, quick: bool) -> int:
    """Show the circle: publish, release, canary, promotion, and a bad version caught."""
    from lockgate.client.client import RemoteObjects, connect
    from lockgate.demo.story import Means, run_demo

    means = Means(
        connect=lambda home: connect(home, actor=ctx.actor),
        objects=lambda connection: RemoteObjects(cast("Client", connection)),
    )
    return run_demo(out, means, quick=quick, output=ctx.output)


COMMANDS = {"serve": serve, "demo": demo}
