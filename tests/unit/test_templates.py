"""The templates for CI systems: valid by those systems' schemas, true of this command line."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from lockgate.cli.main import cli
from lockgate.core.errors import error_classes

TEMPLATES = Path(__file__).resolve().parents[2] / "templates"
SCHEMAS = {"github.yml": "vendor.github-workflows", "gitlab.yml": "vendor.gitlab-ci"}
JENKINS = "Jenkinsfile"  # has no schema; only a running Jenkins could check it
EXIT_CODES = {cls.exit_code for cls in error_classes()}


def test_every_template_is_checked() -> None:
    assert {path.name for path in TEMPLATES.iterdir()} == {*SCHEMAS, JENKINS}


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_a_template_is_valid(name: str) -> None:
    pytest.importorskip("check_jsonschema", reason="check-jsonschema is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", SCHEMAS[name],
         str(TEMPLATES / name)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", sorted({*SCHEMAS, JENKINS}))
def test_a_template_uses_verbs_and_options_that_there_are(name: str) -> None:
    text = (TEMPLATES / name).read_text()
    context = click.Context(cli)
    calls = re.findall(r"(?<![.\w/-])lockgate ([a-z]+) ([^\n|)]*)", text)
    calls = [(verb, rest) for verb, rest in calls if cli.get_command(context, verb) is not None]
    assert {"publish", "derive", "admit", "plan", "release"} <= {verb for verb, _ in calls}
    for verb, rest in calls:
        command = cli.get_command(context, verb)
        assert command is not None
        known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
        known |= {o for p in cli.params for o in p.opts}
        assert set(re.findall(r"--[a-z][\w-]*", rest)) <= known, (verb, rest)


def jenkins() -> tuple[str, list[str]]:
    """Returns the Jenkinsfile without its shell scripts, and those scripts."""
    scripts: list[str] = []

    def take(found: re.Match[str]) -> str:
        scripts.append(found["long"] or found["short"])
        return f"{found['call']} SCRIPT"

    call = r"(?P<call>\bsh(?:\(returnStatus: true, script:)?) "
    body = r"(?:\'\'\'(?P<long>.*?)\'\'\'|\'(?P<short>[^\'\n]+)\')"
    text = (TEMPLATES / JENKINS).read_text()
    return re.sub(call + body, take, text, flags=re.DOTALL), scripts


def test_the_shell_of_the_jenkinsfile_parses() -> None:
    """And Groovy leaves it alone: a script in double quotes would show secrets in the log."""
    rest, scripts = jenkins()
    assert len(scripts) == len(re.findall(r"\bsh\b", rest)) >= 7
    for script in scripts:
        done = subprocess.run(["sh", "-n"], input=script, capture_output=True, text=True)
        assert done.returncode == 0, script + done.stderr


def test_the_jenkinsfile_has_the_stages_in_order_and_closes_what_it_opens() -> None:
    rest, _ = jenkins()
    assert re.findall(r"stage\('(\w+)'\)", rest) == [
        "install", "publish", "derive", "admit", "plan", "release",
    ]  # fmt: skip
    blank = re.sub(r"//.*|'[^'\n]*'|\"[^\"\n]*\"", "", rest)
    open_: list[str] = []
    for mark in re.findall(r"[(){}\[\]]", blank):
        if mark in "({[":
            open_.append(mark)
        else:
            assert open_.pop() + mark in ("()", "{}", "[]")
    assert not open_


def test_the_jenkinsfile_knows_the_exit_codes_that_decide() -> None:
    rest, _ = jenkins()
    shown = {int(code) for code in re.findall(r"code == (\d+)", rest)}
    assert {10, 11, 12, 15} <= shown <= EXIT_CODES
