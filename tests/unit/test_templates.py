"""The templates for CI systems: valid by those systems' schemas, true of this command line."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from lockgate.cli.main import cli

TEMPLATES = Path(__file__).resolve().parents[2] / "templates"
SCHEMAS = {"github.yml": "vendor.github-workflows", "gitlab.yml": "vendor.gitlab-ci"}


def test_every_template_has_its_schema() -> None:
    assert {path.name for path in TEMPLATES.iterdir()} == set(SCHEMAS)


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_a_template_is_valid(name: str) -> None:
    pytest.importorskip("check_jsonschema", reason="check-jsonschema is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", SCHEMAS[name],
         str(TEMPLATES / name)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", sorted(SCHEMAS))
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
