"""The command line: what it imports, how it ends, and what it asks the server for."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from lockgate.cli import main as cli_main
from lockgate.cli.main import INTERRUPTED, Verbs, cli, main
from lockgate.cli.releases import PENDING, asked, outcome, settled
from lockgate.core.errors import (
    GateRefusedError,
    HeldError,
    LockgateError,
    NotFoundError,
    Problem,
    RolledBackError,
    SpecError,
    UsageError,
    error_classes,
)

HEAVY = (
    *("fastapi", "uvicorn", "pydantic", "numpy", "onnxruntime", "grpc", "httpx2", "yaml"),
    *("prometheus_client", "lockgate.server", "lockgate.gateway", "lockgate.analysis"),
)


def imported(*arguments: str) -> set[str]:
    """Returns the modules that `lockgate ARGUMENTS` imports in a process of its own."""
    script = (
        "import sys\n"
        "from lockgate.cli.main import main\n"
        f"code = main({list(arguments)!r})\n"
        "sys.stderr.write(chr(10).join(sys.modules))\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
    assert "Usage: " in done.stdout
    return set(done.stderr.split("\n"))


def test_help_imports_nothing_heavy_and_no_verb() -> None:
    modules = imported("--help")
    assert not {name for name in HEAVY if name in modules}
    assert not {name for name in modules if name.startswith("lockgate.cli.v")}


@pytest.mark.parametrize("verb", ["serve", "release", "publish", "doctor", "demo"])
def test_help_of_a_verb_imports_no_server(verb: str) -> None:
    modules = imported(verb, "--help")
    assert not {name for name in ("fastapi", "onnxruntime", "grpc", "numpy") if name in modules}


def test_every_verb_is_in_one_section_and_has_a_summary() -> None:
    verbs = list(cli_main._VERBS)
    shown = [verb for section in cli_main._SECTIONS.values() for verb in section]
    assert sorted(shown) == sorted(verbs) == sorted(cli_main._SUMMARIES)


def test_every_verb_loads_and_has_its_name_and_help() -> None:
    context = click.Context(cli)
    for verb in cli.list_commands(context):
        command = cli.get_command(context, verb)
        assert command is not None
        assert command.name == verb
        assert command.help


@pytest.mark.parametrize(
    "arguments",
    [["bogus"], ["--bogus"], ["show"], ["release", "a/b", "v1", "--replicas", "0"],
     ["hold", "rel-1"], ["release", "a/b", "--ok-when", "never"]],
)  # fmt: skip
def test_a_mistake_in_the_arguments_is_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "Error: " in said.err


def failing(
    monkeypatch: pytest.MonkeyPatch, raised: BaseException | None = None, result: object = None
) -> None:
    """Makes every verb raise, or return."""

    @click.command()
    def verb() -> object:
        if raised is not None:
            raise raised
        return result

    find: Callable[[Verbs, click.Context, str], click.Command] = lambda *_: verb  # noqa: E731
    monkeypatch.setattr(Verbs, "get_command", find)


def an_error(kind: type[LockgateError]) -> LockgateError:
    """Returns an error of that class."""
    if issubclass(kind, SpecError):
        return kind([Problem(path="model", message="it is missing", line=3)], hint="look there")
    return kind("it did not work", hint="look there")


@pytest.mark.parametrize("kind", list(error_classes()), ids=lambda kind: kind.code)
def test_each_error_has_its_exit_code_and_says_what_to_do(
    kind: type[LockgateError], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, an_error(kind))
    assert main(["status"]) == kind.exit_code
    said = capsys.readouterr()
    assert said.out == ""
    assert "error: " in said.err
    assert "try: look there" in said.err


@pytest.mark.parametrize("kind", list(error_classes()), ids=lambda kind: kind.code)
@pytest.mark.parametrize("arguments", [["--json", "status"], ["status", "--json"]])
def test_each_error_is_json_on_stderr(
    kind: type[LockgateError],
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    failing(monkeypatch, an_error(kind))
    assert main(arguments) == kind.exit_code
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert json.loads(line)["error"] == {
        "code": kind.code,
        "message": an_error(kind).message,
        "hint": "look there",
        "exit_code": kind.exit_code,
        "docs": f"docs/errors.md#{kind.code}",
    }


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), click.exceptions.Abort()])
def test_an_interrupt_is_130(raised: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, raised)
    assert main(["status"]) == INTERRUPTED == 130


@pytest.mark.parametrize(("result", "code"), [(None, 0), (0, 0), (PENDING, 9), (1, 1)])
def test_what_a_verb_returns_is_the_exit_code(
    result: object, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, result=result)
    assert main(["status"]) == code


def test_no_server_is_said_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("LOCKGATE_HOME", "LOCKGATE_SERVER", "LOCKGATE_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    assert main(["--home", str(tmp_path / "home"), "status"]) == NotFoundError.exit_code
    assert "lockgate serve" in capsys.readouterr().err


def test_a_spec_is_sent_as_it_is(tmp_path: Path) -> None:
    spec = tmp_path / "release.yaml"
    spec.write_text("model: acme/chat  # ü\n", "utf-8")
    assert asked(str(spec), None, "local", None, None) == {"yaml": "model: acme/chat  # ü\n"}


def test_a_file_with_any_name_is_a_spec(tmp_path: Path) -> None:
    spec = tmp_path / "release.txt"
    spec.write_text("model: acme/chat\n", "utf-8")
    assert "yaml" in asked(str(spec), None, "local", None, None)


def test_a_spec_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"there is no spec .*gone\.yaml"):
        asked(str(tmp_path / "gone.yaml"), None, "local", None, None)


def test_a_spec_that_is_not_text_is_a_usage_error(tmp_path: Path) -> None:
    spec = tmp_path / "release.yaml"
    spec.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8"):
        asked(str(spec), None, "local", None, None)


@pytest.mark.parametrize(("spec", "version"), [("acme/chat", "v3"), ("acme/chat:v3", None)])
def test_a_model_and_a_version_are_asked_for_by_name(spec: str, version: str | None) -> None:
    assert asked(spec, version, "eu", 2, "vllm") == {
        "model": "acme/chat",
        "version": "v3",
        "target": "eu",
        "replicas": 2,
        "runtime": {"name": "vllm"},
    }
    assert asked(spec, version, "local", None, None)["runtime"] is None


def test_a_model_without_a_version_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="which version of acme/chat") as found:
        asked("acme/chat", None, "local", None, None)
    assert found.value.hint == "lockgate models acme/chat lists them"


def a_release(**changes: Any) -> dict[str, Any]:
    """Returns what `outcome` and `settled` look at."""
    return {"id": "rel-7", "phase": "promoted", "final": True, "held": None, "rollback": None,
            "note": "", **changes}  # fmt: skip


HELD = {"because": "approval", "reason": "a person must approve 100%"}


def test_a_promoted_release_and_one_under_way_are_fine() -> None:
    assert outcome(a_release()) == 0
    assert outcome(a_release(phase="baking", final=False)) == 0


@pytest.mark.parametrize(
    ("view", "error", "said"),
    [
        (a_release(phase="baking", final=False, held=HELD), HeldError, r"held \(approval\): a per"),
        (a_release(phase="reverted", rollback={"reason": "slow"}), RolledBackError, "back: slow"),
        (a_release(phase="reverted"), RolledBackError, "rel-7 was rolled back"),
        (a_release(phase="refused", note="unsigned"), GateRefusedError, "refused: unsigned"),
        (a_release(phase="failed", note="no memory"), LockgateError, "traffic: no memory"),
    ],
)
def test_how_a_release_ended_is_an_error(
    view: dict[str, Any], error: type[LockgateError], said: str
) -> None:
    with pytest.raises(error, match=said) as found:
        outcome(view)
    assert type(found.value) is error


def test_held_is_fine_when_asked_for_and_nothing_else_becomes_so() -> None:
    assert outcome(a_release(phase="baking", final=False, held=HELD), "held") == 0
    with pytest.raises(RolledBackError):
        outcome(a_release(phase="reverted"), "held")


@pytest.mark.parametrize(
    ("view", "done"),
    [
        (a_release(), True),
        (a_release(phase="reverted"), True),
        (a_release(phase="baking", final=False), False),
        (a_release(phase="baking", final=False, held=HELD), True),
    ],
)
def test_waiting_ends_when_it_is_final_or_held(view: dict[str, Any], done: bool) -> None:
    assert settled(view) is done
