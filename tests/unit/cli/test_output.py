"""What is printed where, and how a release is drawn."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lockgate.cli.output import Output, clean
from lockgate.cli.views import (
    check_line,
    figure,
    head_line,
    next_line,
    plan_lines,
    release_tree,
    split_line,
    timeline,
)
from lockgate.core.errors import ConflictError

OLD, NEW = "blake3:" + "a" * 64, "blake3:" + "b" * 64
ESCAPE = "\x1b[31mred\x1b[0m\x07\x9b"
Read = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain – ü 語 ✔", "plain – ü 語 ✔"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("\x1b[31m", "�[31m"),
        ("a\rb\x00c\x07d\x7fe\x9bf", "a�b�c�d�e�f"),
        ("left\u202eright", "left�right"),
    ],
)
def test_control_characters_are_replaced(text: str, shown: str) -> None:
    assert clean(text) == shown


def test_nothing_from_outside_drives_the_terminal(capsys: Read) -> None:
    output = Output("human")
    output.say(ESCAPE)
    output.note(ESCAPE)
    output.table(("name", "size>"), [(ESCAPE, 3)])
    output.error(ConflictError(f"said {ESCAPE}", hint=ESCAPE))
    said = capsys.readouterr()
    for text in (said.out, said.err):
        assert "red" in text
        assert not {"\x1b", "\x07", "\x9b"} & set(text)


def test_markup_from_outside_is_text(capsys: Read) -> None:
    output = Output("human")
    output.say("[bold]x[/bold]")
    output.table(("name",), [("[red]y[/red]",)])
    said = capsys.readouterr().out
    assert "[bold]x[/bold]" in said
    assert "[red]y[/red]" in said


def test_json_has_one_value_a_line_and_escapes_control_characters(capsys: Read) -> None:
    output = Output("json")
    output.value({"name": ESCAPE, "ü": 1}, quiet="x")
    for silent in (output.say, output.note, output.hint):
        silent("for people")
    output.table(("name",), [("x",)])
    said = capsys.readouterr()
    (line,) = said.out.splitlines()
    assert json.loads(line) == {"name": ESCAPE, "ü": 1}
    assert "ü" in line
    assert "\x1b" not in line
    assert said.err == ""


def test_quiet_prints_names_only(capsys: Read) -> None:
    output = Output("quiet")
    output.value({"name": "x"}, quiet="v3")
    output.value({"name": "x"})
    output.say("for people")
    output.note("for people")
    said = capsys.readouterr()
    assert (said.out, said.err) == ("v3\n", "")


def test_people_get_data_on_stdout_and_the_rest_on_stderr(capsys: Read) -> None:
    output = Output("human")
    output.value({"name": "x"}, quiet="v3")
    output.say("data")
    output.note("beside it")
    output.hint("lockgate status")
    said = capsys.readouterr()
    assert said.out == "data\n"
    assert said.err == "beside it\nnext: lockgate status\n"


@pytest.mark.parametrize("mode", ["human", "quiet"])
def test_an_error_is_said_in_every_mode(mode: Any, capsys: Read) -> None:
    Output(mode).error(ConflictError("it moved", hint="look again"))
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "error: it moved\n  try: look again\n")


def test_a_long_cell_is_not_cut_in_a_pipe(capsys: Read) -> None:
    Output("human").table(("name", "digest"), [("x" * 120, "y" * 90)])
    assert f"{'x' * 120}  {'y' * 90}" in capsys.readouterr().out


def check(**changes: Any) -> dict[str, Any]:
    """Returns a check as a view has it."""
    return {"check": "ttft_p95 worse by at most 0.1", "signal": "ttft_p95", "outcome": "pass",
            "reason": "fine", "value": 0.42, "baseline": 0.4, "limit": 0.44, "e_value": 2.5,
            "threshold": 100.0, "n": 1200, "n_baseline": 10800, "unit": "s", "proof": 7.5,
            "proof_threshold": 20.0, "low": -0.02, "high": 0.125, "missing": None,
            "dry_run": False, **changes}  # fmt: skip


def view(**changes: Any) -> dict[str, Any]:
    """Returns a release as the server shows it."""
    steps = [{"weight": 1000, "percent": "10%", "state": "now", "approval": False},
             {"weight": 10000, "percent": "100%", "state": "later", "approval": True}]  # fmt: skip
    verdict = {
        "outcome": "hold",
        "reason": "3 of 50 requests",
        "checks": [check()],
        "ready_in_s": None,
    }
    replicas = [
        {"version": "v1", "ready": 2, "total": 2, "restarts": 0, "messages": []},
        {"version": "v2", "ready": 1, "total": 2, "restarts": 4, "messages": []},
    ]
    event = {"at": "2026-01-01T00:00:00.000Z", "actor": "ada", "text": "opened"}
    return {
        "id": "rel-2", "model": "acme/chat", "target": "local", "phase": "baking",
        "final": False, "held": None, "percent": "10%", "bake_left_s": 75.0, "elapsed_s": 12.0,
        "baseline": {"number": 1, "digest": OLD}, "candidate": {"number": 2, "digest": NEW},
        "split": {OLD: 9000, NEW: 1000}, "steps": steps, "verdict": verdict, "rollback": None,
        "note": "", "trouble": None, "replicas": replicas, "timeline": [event], **changes,
    }  # fmt: skip


def test_the_head_says_what_where_and_how_far() -> None:
    text = head_line(view()).plain
    assert text == ("acme/chat  v1 → v2   rel-2   local   baking 10%  1m15s to go   12.0 s")


def test_the_head_of_a_first_release_and_of_a_held_one() -> None:
    assert "  v2   rel-2" in head_line(view(baseline=None)).plain
    held = {"because": "approval", "reason": "x"}
    assert "held (approval)" in head_line(view(held=held)).plain
    assert "10%" not in head_line(view(phase="promoted", bake_left_s=None)).plain


@pytest.mark.parametrize(
    ("weights", "cells", "numbers"),
    [
        ({OLD: 9000, NEW: 1000}, 4, "90 / 10"),
        ({OLD: 5000, NEW: 5000}, 20, "50 / 50"),
        ({NEW: 10000}, 40, "0 / 100"),
        ({OLD: 10000}, 0, "100 / 0"),
        ({OLD: 9999, NEW: 1}, 1, "99.99 / 0.01"),
    ],
)
def test_the_bar_shows_the_split(weights: dict[str, int], cells: int, numbers: str) -> None:
    text = split_line(view(split=weights)).plain
    assert text.count("░") == cells
    assert text.count("█") == 40 - cells
    assert text.startswith("v1 ")
    assert text.endswith(f" v2   {numbers}")


def test_the_bar_without_traffic_or_baseline() -> None:
    assert split_line(view(split={})).plain == "no traffic yet"
    assert split_line(view(split={NEW: 10000}, baseline=None)).plain.startswith("░")


def test_a_check_is_a_line_with_all_its_numbers() -> None:
    assert check_line(check()).plain == (
        "✔ ttft_p95          400 ms → 420 ms  limit 440 ms  n=10,800 → 1,200  "
        "against 2.5 of 100  for 7.5 of 20  -2…+12.5%  pass"
    )


def test_a_check_without_numbers_says_so() -> None:
    bare = check(outcome="hold", value=None, baseline=None, limit=None, e_value=None, n=0,
                 n_baseline=0, proof=None, low=None, high=None)  # fmt: skip
    assert check_line(bare).plain == "● ttft_p95          –  n=0 → 0  hold"
    assert check_line(check(outcome="fail")).plain.startswith("✘ ")


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(None, "s", "–"), (0.0123, "", "1.23%"), (0.25, "s", "250 ms"), (2.5, "s", "2.5 s"),
     (0.02, "s/token", "20 ms/token"), (41.7, "tokens/s", "41.7 tokens/s")],
)  # fmt: skip
def test_figures_have_the_size_that_people_read(value: float | None, unit: str, text: str) -> None:
    assert figure(value, unit) == text


VERBS = "lockgate hold rel-2 --reason … · lockgate rollback acme/chat --reason …"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, f"hold: 3 of 50 requests · {VERBS}"),
        ({"verdict": None}, VERBS),
        ({"trouble": "no proxy"}, "trouble: no proxy"),
        ({"held": {"because": "approval", "reason": "x"}},
         "waits: lockgate approve rel-2 --reason …"),
        ({"held": {"because": "evidence", "reason": "0 of 50"}}, "held: 0 of 50"),
        ({"rollback": {"reason": "too slow"}}, "rolled back: too slow"),
        ({"phase": "failed", "final": True, "note": "no memory"}, "failed: no memory"),
        ({"phase": "promoted", "final": True}, "promoted after 12.0 s"),
        ({"phase": "promoted", "final": True, "trouble": "later"}, "promoted after 12.0 s"),
    ],
)  # fmt: skip
def test_the_last_line_says_what_comes_or_what_to_do(changes: dict[str, Any], text: str) -> None:
    assert next_line(view(**changes)).plain == text


def test_reasons_from_outside_are_cleaned_in_the_last_line() -> None:
    for changes in (
        {"trouble": ESCAPE},
        {"held": {"because": "person", "reason": ESCAPE}},
        {"rollback": {"reason": ESCAPE}},
        {"phase": "failed", "final": True, "note": ESCAPE},
        {"verdict": {"outcome": "hold", "reason": ESCAPE, "checks": []}},
    ):
        assert "\x1b" not in next_line(view(**changes)).plain


def test_a_release_is_drawn_whole(capsys: Read) -> None:
    Output("human").show(release_tree(view()))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("acme/chat  v1 → v2")
    assert "10% ●" in lines[1]
    assert "100% (approval)" in lines[1]
    assert any("ttft_p95" in line for line in lines)
    assert any("v2 1/2 ready, 4 restarts" in line for line in lines)
    assert lines[-1].startswith("hold: 3 of 50")


def test_the_timeline_is_a_line_an_event() -> None:
    assert timeline(view()) == ["2026-01-01T00:00:00.000Z  ada        opened"]


def plan(**changes: Any) -> dict[str, Any]:
    """Returns a plan as the server shows it."""
    steps = [{"weight": 50, "bake_s": 600.0, "min_requests": 1500, "approval": False},
             {"weight": 10000, "bake_s": 0.0, "min_requests": 0, "approval": True}]  # fmt: skip
    more = {"mirror": 0, "replicas": None, "baseline_replicas": None, "need": "safe"}
    steps = [{**more, **step} for step in steps]
    checks = [
        {
            "signal": "error_rate",
            "worse_by_at_most": 0.25,
            "at_most": None,
            "floor": 0.001,
            "tolerate": 0.1,
            "dry_run": False,
        },
        {
            "signal": "latency_p95",
            "worse_by_at_most": None,
            "at_most": 0.8,
            "floor": None,
            "tolerate": None,
            "dry_run": True,
        },
    ]
    return {
        "model": "acme/chat", "target": "local", "strategy": "canary", "bytes_to_move": 41_000_000,
        "baseline": {"number": 1, "digest": OLD}, "candidate": {"number": 2, "digest": NEW},
        "serving": {"replicas": 2}, "steps": steps, "checks": checks, "alpha": 0.01, "beta": 0.05,
        "approvers": 1, "windows": [], "slo": 0.999,
        "earliest_s": 600.0, "keep_previous_s": 3600.0, **changes,
    }  # fmt: skip


def test_a_plan_is_sentences() -> None:
    text = "\n".join(plan_lines(plan()))
    assert text.startswith("acme/chat  v1 → v2 (blake3:bbbbbbbbbbbb)  to local  by canary\n")
    assert "replicas   2, " in text
    assert "41,000,000 bytes" in text
    assert "step 1     0.5%, bake 10m00s, ≥ 1,500 requests, until proven" in text
    assert "step 2     100%, no bake, until proven within every limit, after an approval\n" in text
    assert "error_rate worse by at most 25%" in text
    assert "latency_p95 limit 0.8" in text
    assert "0.01 chance" in text
    assert "objective  99.9% of requests" in text
    assert "earliest   10m00s; previous version kept ready for 1h00m" in text


def test_a_plan_without_checks_says_so_unless_it_is_the_first() -> None:
    assert any("check      none" in line for line in plan_lines(plan(checks=[])))
    first = plan_lines(plan(checks=[], baseline=None))
    assert not any("check" in line for line in first)
    assert "first: v2" in first[0]
