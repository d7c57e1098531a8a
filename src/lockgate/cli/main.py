"""The command `lockgate`: finds the verb, runs it, turns errors into sentences and exit codes."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lockgate._version import __version__
from lockgate.core.errors import LockgateError, UsageError

if TYPE_CHECKING:
    from lockgate.cli.output import Output
    from lockgate.client.client import Client

_VERBS = {
    "publish": "versions", "models": "versions", "show": "versions", "diff": "versions",
    "lineage": "versions", "verify": "versions", "restore": "versions", "alias": "versions",
    "du": "store", "gc": "store", "optimize": "store", "repair": "store", "backup": "store",
    "recover": "store", "export": "store", "import": "store", "sums": "store",
    "derive": "derive", "steps": "derive", "rerun": "derive", "admit": "admit",
    "plan": "releases", "release": "releases", "releases": "releases", "watch": "verbs",
    "explain": "verbs", "approve": "verbs", "hold": "verbs", "resume": "verbs", "promote": "verbs",
    "rollback": "verbs", "block": "verbs", "unblock": "verbs",
    "convert": "releases", "replay": "verbs",
    "status": "system", "fleet": "system", "audit": "system", "doctor": "system",
    "hooks": "hooks",
    "serve": "serve", "demo": "serve",
}  # fmt: skip
_SECTIONS = {
    "Versions": ("publish", "models", "show", "diff", "lineage", "verify", "restore", "alias"),
    "The store": ("du", "gc", "optimize", "repair", "backup", "recover", "export", "import",
                  "sums"),
    "New versions from old": ("derive", "steps", "rerun", "admit"),
    "Releases": ("plan", "release", "releases", "watch", "explain", "approve", "hold", "resume",
                 "promote", "rollback", "block", "unblock", "replay", "convert"),
    "What runs, what happened": ("status", "fleet", "audit", "hooks"),
    "Running it": ("serve", "doctor", "demo"),
}  # fmt: skip
_SUMMARIES = {
    "publish": "Publish a folder as the next version of a model.",
    "models": "List models, or the versions of one.",
    "show": "Show a version: what it is made of, and where it came from.",
    "diff": "Show what changed between two versions.",
    "lineage": "Show what a version came from, and what came from it.",
    "verify": "Read every byte of a version, or of all, and check it.",
    "restore": "Write a version to a folder, bit for bit.",
    "alias": "Make an alias name a version.",
    "du": "Show what each version costs, alone and shared.",
    "gc": "Remove what no version needs.",
    "optimize": "Encode old versions anew where that saves bytes.",
    "repair": "Take what is damaged from another store or a backup.",
    "backup": "Copy store and ledger to another place.",
    "recover": "Bring a backup into a new state folder.",
    "export": "Write a version to one file, for a site without network.",
    "import": "Make a version of such a file.",
    "sums": "Print the SHA-256 of each file of a version.",
    "derive": "Make a version from others: run a step, or a pipeline of them.",
    "steps": "List the steps there are, or describe one.",
    "rerun": "Run a version's recipe again, and compare every byte.",
    "admit": "Judge by gates whether a version is worth releasing.",
    "plan": "Show what a release would do and cost; change nothing.",
    "release": "Release a version, by a spec or by name.",
    "releases": "List releases.",
    "watch": "Follow a release until it is done or held.",
    "explain": "Show the reasoning behind a release, with its numbers.",
    "approve": "Give your word for a step of a release.",
    "hold": "Keep a release where it is.",
    "resume": "End a hold.",
    "promote": "Skip what is left of a release's steps.",
    "rollback": "Go back to the version that served before.",
    "replay": "Judge a release's samples anew, under other checks.",
    "convert": "Turn an Argo Rollout or a Flagger Canary into a release spec.",
    "block": "Let no release of a model go forward.",
    "unblock": "End a block.",
    "status": "Show what serves, and what is under way.",
    "fleet": "List replicas.",
    "audit": "Read the ledger, or check that nobody touched it.",
    "hooks": "List hooks: what they delivered, what waits; or test one.",
    "serve": "Run the control plane and the gateway on this machine.",
    "doctor": "Check this machine and this folder.",
    "demo": "Show the whole circle with real small models.",
}
INTERRUPTED = 130
_FLAGS = (
    ("--json", "as_json", "json"),
    ("--quiet", "as_quiet", "quiet"),
    ("--no-color", "as_plain", None),
)


@dataclass(slots=True, kw_only=True)
class Context:
    """What every verb gets: how to print, and where the server is."""

    output: Output
    home: Path
    server: str | None
    actor: str

    def print_as(self, mode: str | None) -> None:
        """Changes how to print: `json`, `quiet`, or None for no colours."""
        from lockgate.cli.output import Output

        if mode is None:
            self.output = Output(self.output.mode, color=False)
        else:
            self.output = Output("json" if mode == "json" else "quiet", color=self.output.color)

    def client(self) -> Client:
        """Returns a client of the server; raises NotFoundError when there is none."""
        from lockgate.client.client import connect

        return connect(self.home, self.server, self.actor)


class Verbs(click.Group):
    """Loads a verb's module when it is used, not before."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns every verb."""
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Returns the verb's command, importing its module."""
        module = _VERBS.get(cmd_name)
        if module is None:
            return None
        found = importlib.import_module(f"lockgate.cli.{module}")
        command: click.Command = found.COMMANDS[cmd_name]
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Finds the verb, and lets it take the flags that say how to print."""
        name, command, rest = super().resolve_command(ctx, args)
        if command is not None:
            _take_flags(command)
        return name, command, rest

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the verbs by section, without importing any."""
        for title, verbs in _SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(verb, _SUMMARIES[verb]) for verb in verbs])


@click.command(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="lockgate")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: one value, or one a line.")
@click.option("--quiet", is_flag=True, help="Print names only.")
@click.option("--no-color", is_flag=True, help="Print without colours (also: NO_COLOR).")
@click.option("--home", type=click.Path(path_type=Path), help="State folder [.lockgate].")
@click.option("--server", help="Address of a server (also: LOCKGATE_SERVER).")
@click.option("--actor", help="Who you are, for the record [your user name].")
@click.pass_context
def cli(
    ctx: click.Context,
    *,
    as_json: bool,
    quiet: bool,
    no_color: bool,
    home: Path | None,
    server: str | None,
    actor: str | None,
) -> None:
    """Take a model from finished weights to safe production traffic, and back."""
    from lockgate.cli.output import Output
    from lockgate.client.home import default_home

    color = not (no_color or os.environ.get("NO_COLOR"))
    ctx.obj = Context(
        output=Output("json" if as_json else "quiet" if quiet else "human", color=color),
        home=home or default_home(),
        server=server,
        actor=actor or _user(),
    )


def _user() -> str:
    """Returns the name of the user who runs this."""
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user id without a name
        return f"uid-{os.getuid()}"


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        result = cli.main(given, standalone_mode=False)
    except LockgateError as error:
        _output(given).error(error)
        return error.exit_code
    except click.exceptions.Abort:
        return INTERRUPTED
    except KeyboardInterrupt:
        return INTERRUPTED
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        return _usage(error, given)
    except Exception as error:
        if os.environ.get("LOCKGATE_DEBUG"):
            raise
        _output(given).error(_bug(error))
        return LockgateError.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return result if isinstance(result, int) else 0


def _usage(error: click.ClickException, arguments: list[str]) -> int:
    """Says what is wrong with the arguments: as click does, or as JSON when that was asked for."""
    if "--json" in arguments:
        _output(arguments).error(UsageError(error.format_message()))
    else:
        error.show()
    return UsageError.exit_code


def _bug(error: Exception) -> LockgateError:
    """Returns the sentence for an error that nobody foresaw."""
    return LockgateError(
        f"this is a fault of lockgate itself: {type(error).__name__}: {error}",
        hint="LOCKGATE_DEBUG=1 shows where; please report it",
    )


def _take_flags(command: click.Command) -> None:
    """Lets a verb take the flags that say how to print, behind it as before it."""
    if any(parameter.name == "as_json" for parameter in command.params):
        return
    for flag, name, mode in _FLAGS:
        command.params.append(
            click.Option([flag, name], is_flag=True, expose_value=False, hidden=True,
                         callback=_mode_setter(mode))
        )  # fmt: skip


def _mode_setter(mode: str | None) -> Callable[[click.Context, click.Parameter, bool], None]:
    def set_mode(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        if value:
            ctx.obj.print_as(mode)

    return set_mode


def _output(arguments: list[str]) -> Output:
    from lockgate.cli.output import Output

    return Output("json" if "--json" in arguments else "human")


def run() -> None:
    """The console script."""
    sys.exit(main())
