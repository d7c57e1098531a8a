"""Deriving: known by recipe, reproduced, resumed, and nothing half made."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lockgate.core.errors import (
    ConflictError,
    IntegrityError,
    NotFoundError,
    SpecError,
    StepFailedError,
    UsageError,
)
from lockgate.derive.again import reproduce
from lockgate.derive.recipe import Given
from lockgate.derive.run import Made, Task, derive, make_task
from lockgate.host.jobs.api import Limits

from .home import MODEL, TRAIN, Home


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path)
    yield made
    made.close()


def task(home: Home, *, text: str = TRAIN, limits: Limits | None = None, **settings: Any) -> Task:
    base = settings.pop("base", None)
    inputs: dict[str, list[Given]] = (
        {"base": [home.site.versions.find(MODEL, base)]} if base else {}
    )
    parameters = {"script": home.script(text), "settings": settings}
    return make_task("command", inputs, parameters, to=MODEL, limits=limits)


def run(home: Home, **about: Any) -> Made:
    return derive(task(home, **about), home.site, home.place)


def test_a_step_makes_a_version_with_its_lineage_recipe_and_metrics(home: Home) -> None:
    digest = home.publish(sum=10)
    made = run(home, base="v1")
    assert (made.reused, made.version.number) == (False, 2)
    assert home.read(MODEL, "v2") == 16
    version = home.registry.version(MODEL, "v2")
    assert [(e.relation, e.digest) for e in version.lineage] == [("trained-from", digest)]
    (told,) = version.derived
    assert told.metrics == {"loss": pytest.approx(1 / 3)}
    assert told.recipe["step"] == "command"
    assert told.seconds > 0
    assert told.peak_bytes > 1_000_000
    assert not any((home.folder / "derive").glob("*/job.json"))
    assert [h.advance.done for h in home.heard if h.advance] == [1, 2, 3]


def test_the_same_recipe_is_not_run_again(home: Home) -> None:
    first = run(home)
    again = run(home)
    assert (again.reused, again.version.digest) == (True, first.version.digest)
    assert len(home.registry.model(MODEL).versions) == 1
    other = run(home, epochs=4)
    assert (other.reused, other.version.number) == (False, 2)


def test_another_code_is_another_recipe(home: Home) -> None:
    before = task(home).recipe
    assert task(home, text=TRAIN + "\n# changed\n").recipe.digest != before.digest
    moved = home.folder / "elsewhere"
    moved.mkdir()
    (moved / "train.py").write_text(TRAIN)
    parameters = {"script": str(moved / "train.py"), "settings": {}}
    assert make_task("command", {}, parameters, to=MODEL).recipe.digest == before.digest


def test_the_same_bytes_for_another_model_are_not_made_again(home: Home) -> None:
    run(home)
    wanted = replace(task(home), to="acme/other")
    made = derive(wanted, home.site, home.place)
    assert made.reused
    assert home.read("acme/other", "v1") == 6


def test_a_recipe_gives_the_same_bytes_again(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    made = run(home)
    monkeypatch.chdir(home.folder)  # the recipe names the script by its name alone
    same = reproduce(MODEL, "v1", home.site, home.place, Limits())
    assert same.version.digest == made.version.digest


def test_a_recipe_that_does_not_give_the_same_bytes_is_found(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home.folder)
    run(home, text=TRAIN + "\n(out / 'when').write_text(os.urandom(8).hex())\n")
    with pytest.raises(IntegrityError, match="run again"):
        reproduce(MODEL, "v1", home.site, home.place, Limits())
    home.script(TRAIN)
    with pytest.raises(UsageError, match="the code of command here is not what made"):
        reproduce(MODEL, "v1", home.site, home.place, Limits())


def test_a_published_version_has_no_recipe(home: Home) -> None:
    home.publish(sum=1)
    with pytest.raises(NotFoundError, match="no step made"):
        reproduce(MODEL, "v1", home.site, home.place, Limits())


def test_a_step_that_fails_says_so_and_leaves_no_version(home: Home) -> None:
    with pytest.raises(StepFailedError, match="exit code 1"):
        run(home, text="print('half', flush=True); raise SystemExit('no data')")
    with pytest.raises(StepFailedError, match="wrote nothing"):
        run(home, text="pass")
    assert MODEL not in home.registry.models()


def test_a_failed_step_goes_on_where_it_was(home: Home) -> None:
    broken = TRAIN.replace(
        "while at <", "sys.exit(3) if at == 2 and not (scratch / 'ok').exists() else 0\nwhile at <"
    ).replace(
        "    print(json",
        "    if at == 2 and not (scratch / 'ok').exists():\n"
        "        (scratch / 'ok').touch(); sys.exit(3)\n    print(json",
    )
    with pytest.raises(StepFailedError, match="exit code 3"):
        run(home, text=broken)
    run(home, text=broken)
    assert home.read(MODEL, "v1") == 6


@pytest.mark.parametrize(
    ("text", "limits", "said"),
    [
        ("kept = []\nwhile True: kept.append(bytearray(b'1' * 5_000_000))",
         {"memory_bytes": 300_000_000}, "memory"),
        ("import time\nwhile True: time.sleep(1)", {"silent_s": 1.0}, "no sign of life"),
        ("import json, time\nwhile True: print(json.dumps({'done': 1}), flush=True); "
         "time.sleep(0.1)", {"seconds": 2.0}, "longer than 2 s"),
        ("import os, pathlib\nout = pathlib.Path(os.environ['LOCKGATE_OUT'])\ni = 0\n"
         "while True:\n i += 1\n (out / str(i)).write_bytes(b'1' * 900_000)",
         {"disk_bytes": 30_000_000}, "bytes"),
        ("import os, time\nfor _ in range(8): os.fork()\ntime.sleep(30)",
         {"processes": 40}, "processes"),
    ],
    ids=["leak", "hang", "too long", "disk", "fork"],
)  # fmt: skip
def test_a_step_that_takes_too_much_is_stopped(
    home: Home, text: str, limits: dict[str, Any], said: str
) -> None:
    allowed = replace(Limits(seconds=60.0), **limits)
    with pytest.raises(StepFailedError, match=said) as caught:
        run(home, text=text, limits=allowed)
    assert "command was stopped" in str(caught.value)
    assert caught.value.hint
    assert MODEL not in home.registry.models()
    assert not any((home.folder / "derive").glob("*/out/*"))


def test_a_step_may_not_change_its_inputs(home: Home) -> None:
    home.publish(sum=10)
    text = TRAIN + "\n(pathlib.Path(base) / 'sum.json').write_text('0')\n"
    with pytest.raises(StepFailedError, match="changed files of its inputs"):
        run(home, text=text, base="v1")
    assert run(home, base="v1").version.number == 2  # the input was restored anew
    assert home.read(MODEL, "v2") == 16


def test_what_is_no_version_is_refused(home: Home) -> None:
    text = TRAIN + "\n(out / 'link').symlink_to('/etc/passwd')\n"
    with pytest.raises(StepFailedError, match="no version"):
        run(home, text=text)
    assert MODEL not in home.registry.models()


def test_a_step_sees_no_secrets(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCKGATE_TOKEN", "hunter2")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    run(home, text="import os\nopen(os.environ['LOCKGATE_OUT'] + '/sum.json', 'w')"
        ".write(__import__('json').dumps(dict(os.environ)))")  # fmt: skip
    assert "hunter2" not in json.dumps(home.read(MODEL, "v1"))


def test_mistakes_are_told_before_anything_runs(home: Home) -> None:
    digest = home.publish(sum=1)
    given = Given(name="", model=MODEL, number=1, digest=digest)
    with pytest.raises(NotFoundError, match="no step 'tuna'"):
        make_task("tuna", {}, {}, to=MODEL)
    with pytest.raises(SpecError) as caught:
        make_task("command", {}, {"interpreter": 3, "extra": 1}, to=MODEL)
    assert len(caught.value.problems) == 3
    with pytest.raises(UsageError, match="takes no input 'bass'"):
        make_task("command", {"bass": [given]}, {"script": "x"}, to=MODEL)
    with pytest.raises(UsageError, match="takes one version"):
        make_task("command", {"base": [given, given]}, {"script": "x"}, to=MODEL)


def test_one_recipe_is_run_by_one_at_a_time(home: Home) -> None:
    wanted = task(home)
    from lockgate.core.digests import hex_of

    with home.place.claim(hex_of(wanted.recipe.digest)[:32]), pytest.raises(ConflictError):
        derive(wanted, home.site, home.place)


def test_killed_in_the_middle_of_a_step_it_goes_on_there(tmp_path: Path) -> None:
    text = TRAIN.replace("    (scratch / \"epochs.log\")", "    import time; time.sleep(0.7)\n"
                         "    (scratch / \"epochs.log\")")  # fmt: skip
    pid = os.fork()
    if not pid:
        child = Home(tmp_path)
        child.place = replace(
            child.place,
            hear=lambda heard: os.kill(os.getpid(), signal.SIGKILL)
            if heard.advance and heard.advance.done == 2 else None,
        )  # fmt: skip
        try:
            run(child, text=text)
        finally:
            os._exit(7)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    home = Home(tmp_path)
    (folder,) = (p for p in (tmp_path / "derive").iterdir() if (p / "job.json").exists())
    before = (folder / "scratch" / "epochs.log").read_text().split()
    assert before == ["1"]
    heard_before = len(home.heard)
    run(home, text=text)
    assert [h.advance.done for h in home.heard[heard_before:] if h.advance] == [3]
    assert home.read(MODEL, "v1") == 6
    home.close()
