"""hooks.yaml: every mistake with its line, and no secret shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from lockgate.core.errors import SpecError
from lockgate.server.hooks.spec import load_hooks, wanted

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
ENV = {"HOOK": SECRET}
GOOD = """\
out:
  ci:
    url: https://ci.example/lockgate
    secret: [{env: HOOK}, {file: new.secret}]
    events: [Release*, TrainingReported]
    models: acme/*
    timeout: 5s
in:
  training:
    secret: {env: HOOK}
"""


def write(home: Path, text: str, secret: str = SECRET, mode: int = 0o600) -> Path:
    (home / "hooks.yaml").write_text(text)
    (home / "new.secret").write_text(secret + "\n")
    (home / "new.secret").chmod(mode)
    return home


def test_what_it_may_say(tmp_path: Path) -> None:
    found = load_hooks(write(tmp_path, GOOD), ENV)
    ci = found.spec.out["ci"]
    assert (ci.events, ci.models, ci.timeout, ci.give_up_after) == (
        ("Release*", "TrainingReported"), ("acme/*",), 5.0, 86_400.0,
    )  # fmt: skip
    assert len(found.out_secrets["ci"]) == 2
    assert len(found.in_secrets["training"]) == 1
    assert SECRET[6:] not in repr(found)


def test_without_a_file_there_are_no_hooks(tmp_path: Path) -> None:
    assert not load_hooks(tmp_path, {}).spec.out


def test_all_mistakes_come_at_once_with_their_lines(tmp_path: Path) -> None:
    text = """\
out:
  ci:
    url: http://ci.example/lockgate
    secret: whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw
  other:
    url: https://ci.example/
    secret: {env: HOOK, file: x}
    colour: blue
  typo:
    url: https://ci.example/
    secret: {env: HOOK}
    events: [ReleasePromotd]
  plain:
    url: http://ci.example/lockgate
    secret: {env: HOOK}
"""
    with pytest.raises(SpecError) as caught:
        load_hooks(write(tmp_path, text), ENV)
    said = {(p.line, p.message) for p in caught.value.problems}
    assert {line for line, _ in said} == {3, 4, 7, 8, 12, 14}
    assert any("never written here" in message for _, message in said)
    assert any("no event 'ReleasePromotd'" in message for _, message in said)
    assert any("in the open" in message for _, message in said)
    assert SECRET[6:] not in str(caught.value)


def test_secrets_that_can_not_be_had_are_mistakes_with_lines(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        load_hooks(write(tmp_path, GOOD, mode=0o644), {})
    assert [(p.path, p.line) for p in caught.value.problems] == [
        ("out.ci.secret", 4), ("out.ci.secret", 4), ("in.training.secret", 10),
    ]  # fmt: skip
    assert "HOOK is not set" in str(caught.value)
    assert "can be used by others" in str(caught.value)


@pytest.mark.parametrize("secret", ["", "hello", "whsec_" + "A" * 8000, "\udce4"])
def test_a_file_that_holds_no_secret(tmp_path: Path, secret: str) -> None:
    write(tmp_path, GOOD)
    (tmp_path / "new.secret").write_bytes(secret.encode("utf-8", "surrogateescape"))
    with pytest.raises(SpecError, match=r"out\.ci\.secret"):
        load_hooks(tmp_path, ENV)


@pytest.mark.parametrize(
    ("url", "fine"),
    [
        ("https://ci.example/x?y=1", True), ("http://127.0.0.1:80/", True),
        ("http://[::1]:80/", True), ("http://localhost/x", True), ("http://10.0.0.1/", False),
        ("http://localhost.evil.example/", False), ("https://user:pw@ci.example/", False),
        ("ftp://ci.example/", False), ("https:///x", False), ("https://ci.example:x/", False),
        ("https://ci.example/a b", False), ("https://ci.example/#a", False),
        ("https://[::1/", False),
    ],
)  # fmt: skip
def test_where_messages_may_go(tmp_path: Path, url: str, fine: bool) -> None:
    write(tmp_path, f"out: {{ci: {{url: '{url}', secret: {{env: HOOK}}}}}}")
    if fine:
        assert load_hooks(tmp_path, ENV).spec.out["ci"].url == url
    else:
        with pytest.raises(SpecError):
            load_hooks(tmp_path, ENV)


def test_insecure_is_said_aloud(tmp_path: Path) -> None:
    write(tmp_path, "out: {ci: {url: 'http://10.0.0.1/', insecure: true, secret: {env: HOOK}}}")
    assert load_hooks(tmp_path, ENV).spec.out["ci"].insecure


def test_a_model_that_is_not_known_fits_only_everything() -> None:
    assert wanted(("*",), None)
    assert not wanted(("acme/*",), None)
    assert wanted(("other/x", "acme/*"), "acme/chat")
