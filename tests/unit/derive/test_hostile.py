"""Steps that leave, say and do what they should not: refused in a sentence, and no half version."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lockgate.core.digests import hex_of
from lockgate.core.errors import (
    LockgateError,
    NotFoundError,
    SpecError,
    StepFailedError,
    UsageError,
)
from lockgate.derive.run import Made, derive, make_task
from lockgate.host.jobs.api import Limits

from .home import MODEL, Home

HEAD = """
import json, os, pathlib, shutil, socket, sys, time
out, scratch = (pathlib.Path(os.environ["LOCKGATE_" + n]) for n in ("OUT", "SCRATCH"))
(out / "a.json").write_text("1")
"""
LEFT = {
    "a pipe": ("os.mkfifo(out / 'p\\n')", r"left a pipe in its output: 'p\n'"),
    "a socket": ("os.chdir(out); socket.socket(socket.AF_UNIX).bind('s')", "left a socket"),
    "a link for a folder": (
        "shutil.rmtree(out); os.symlink('/etc/apt', out)", "put something else in the place of",
    ),
    "a file for a folder": ("shutil.rmtree(out); out.write_text('x')", "put something else in"),
    "no folder": ("shutil.rmtree(out)", "put something else in the place of"),
    "a link out": ("os.symlink('/etc/passwd', out / 'l')", "link out of the folder"),
    "nothing": ("(out / 'a.json').unlink()", "wrote nothing"),
    "depths": (
        "os.chdir(out)\nfor n in range(150): os.mkdir('d'); os.chdir('d')\nopen('x', 'w').close()",
        "more than 100 folders deep",
    ),
}  # fmt: skip
SAID = {
    "NaN": ('print(json.dumps({"metrics": {"loss": float("nan")}}))', "'loss' is nan"),
    "1e400": ("""print('{"metrics": {"loss": 1e400}}')""", "'loss' is inf"),
    "a name of two lines": ("""print('{"metrics": {"a\\\\nb": 1}}')""", r"'a\nb'"),
    "many": (
        'print(json.dumps({"metrics": {f"m{n}": n for n in range(2000)}}))', "2000 metrics",
    ),
}  # fmt: skip
NOISE = {
    "a long number": """print('{"metrics": {"loss": ' + "9" * 1000 + "}}")""",
    "depths": """print('{"metrics": ' + "[" * 100000 + "]" * 100000 + "}")""",
    "no UTF-8": "sys.stdout.buffer.write(bytes(range(256)) * 100 + b'\\n'); sys.stdout.flush()",
    "no mapping": 'print(5); print("null"); print("[1]"); print(\'{"done": "x"}\')',
    "one long line": "print('x' * 100_000_000)",
}


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path)
    yield made
    made.close()


def run(home: Home, text: str, *, base: bool = False, **limits: float) -> Made:
    inputs = {"base": [home.site.versions.find(MODEL, "v1")]} if base else {}
    given = {"script": home.script(HEAD + text)}
    task = make_task("command", inputs, given, to=MODEL, limits=Limits(**limits))
    return derive(task, home.site, home.place)


def refused(home: Home, text: str) -> LockgateError:
    with pytest.raises(StepFailedError) as caught:
        run(home, text, seconds=60, silent_s=20)
    with pytest.raises(NotFoundError):
        home.registry.version(MODEL, "v1")
    return caught.value


@pytest.mark.parametrize(("text", "said"), LEFT.values(), ids=LEFT.keys())
def test_what_is_no_file_makes_no_version(home: Home, text: str, said: str) -> None:
    assert said in refused(home, text).message
    assert said in refused(home, text).message  # what it left is in nobody's way


@pytest.mark.parametrize(("text", "said"), SAID.values(), ids=SAID.keys())
def test_what_is_no_number_makes_no_version(home: Home, text: str, said: str) -> None:
    assert said in refused(home, text).message


@pytest.mark.parametrize("text", NOISE.values(), ids=NOISE.keys())
def test_noise_is_log_and_costs_no_memory(home: Home, text: str) -> None:
    made = run(home, text, memory_bytes=300_000_000)
    assert (made.version.number, made.metrics) == (1, {})


def test_a_failed_program_is_a_failed_step_and_its_last_words_are_told(home: Home) -> None:
    error = refused(home, "raise SystemExit('the rows are gone')")
    assert error.message == "train.py ended with exit code 1; the last it said: the rows are gone"
    assert error.hint is not None
    assert error.hint.endswith("log.txt")


def test_a_program_that_was_killed_says_by_what(home: Home) -> None:
    assert "ended by SIGSEGV" in refused(home, "os.kill(os.getpid(), 11)").message


def test_what_a_program_prints_is_in_its_log(home: Home) -> None:
    run(home, "print('tokens: 12')")
    (told,) = home.registry.version(MODEL, "v1").derived
    assert "tokens: 12" in told.log


@pytest.mark.parametrize("text", ["{", "[]", '{"metrics": 5}', '{"error": {}}', "\\udcff"])
def test_a_result_that_is_none_is_no_fault_of_lockgate(home: Home, text: str) -> None:
    forged = f'(scratch.parent / "result.json").write_text({text!r}); os.kill(os.getppid(), 9)'
    refused(home, forged)
    refused(home, forged)


def test_an_error_that_nobody_heard_is_not_believed(home: Home) -> None:
    given = {"script": home.script(HEAD)}
    task = make_task("command", {}, given, to=MODEL)
    with home.place.claim(hex_of(task.recipe.digest)[:32]) as folder:
        error = {"code": "error", "message": "command failed: BrokenPipeError", "hint": None}
        (folder / "result.json").write_text(json.dumps({"error": error}))
    assert derive(task, home.site, home.place).version.number == 1


TOUCH = """
path = pathlib.Path(os.environ["LOCKGATE_INPUT_BASE"]) / "sum.json"
before = path.stat()
path.chmod(0o600)
path.write_text("11")
os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
"""
READ = '(out / "sum.json").write_text((pathlib.Path(os.environ["LOCKGATE_INPUT_BASE"]) / "sum.json").read_text())'  # noqa: E501


def test_an_input_that_was_changed_behind_its_time_is_noticed(home: Home) -> None:
    home.publish(sum=10)
    with pytest.raises(StepFailedError, match="changed files of its inputs"):
        run(home, TOUCH, base=True)
    run(home, READ, base=True)
    assert home.read(MODEL, "v2") == 10


def test_an_input_that_lost_its_stamps_gets_new_ones(home: Home) -> None:
    home.publish(sum=10)
    run(home, READ, base=True)
    (stamps,) = (home.folder / "derive" / "inputs").glob("*.json")
    stamps.unlink()
    with pytest.raises(StepFailedError, match="changed files of its inputs"):
        run(home, TOUCH, base=True)


def test_an_input_that_a_killed_step_had_changed_is_restored_anew(home: Home) -> None:
    home.publish(sum=10)
    run(home, READ, base=True)  # restores the input, which stays while somebody needs it
    folder = next(p for p in (home.folder / "derive" / "inputs").iterdir() if p.is_dir())
    (folder / "sum.json").chmod(0o600)
    (folder / "sum.json").write_text("11")
    run(home, READ + "\n(out / 'b').write_text('another recipe')", base=True)
    assert home.read(MODEL, "v3") == 10


def test_a_killed_warden_leaves_nobody_behind(home: Home) -> None:
    kill = """
warden = int(open(f"/proc/{os.getppid()}/stat").read().rpartition(")")[2].split()[1])
(scratch / "pid").write_text(str(os.getpid()))
if os.fork() == 0:
    os.setsid()
    time.sleep(600)
os.kill(warden, 9)
time.sleep(600)
"""
    assert "its warden was killed" in refused(home, kill).message
    (pid,) = (home.folder / "derive").glob("*/scratch/pid")
    time.sleep(0.1)
    try:
        state = Path(f"/proc/{pid.read_text()}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return
    assert state == "Z"


ODD = [({"a": float("nan")}, "settings.a: nan"), ({"a": ["\ud800"]}, "settings.a.0: '.ud800'")]


@pytest.mark.parametrize(("settings", "said"), ODD, ids=["NaN", "half a character"])
def test_what_no_recipe_can_hold_is_refused(
    home: Home, settings: dict[str, object], said: str
) -> None:
    given = {"script": home.script(), "settings": settings}
    with pytest.raises(SpecError, match=said):
        make_task("command", {}, given, to=MODEL)


def test_a_script_that_is_not_there_is_refused_before_anything_runs(home: Home) -> None:
    with pytest.raises(UsageError, match="there is no file"):
        make_task("command", {}, {"script": str(home.folder / "nobody.py")}, to=MODEL)


def test_a_progress_that_is_none_does_not_stop_who_listens(home: Home) -> None:
    for line in ('{"done": ' + "9" * 1000 + "}", "[" * 100_000, '"log"', "5", json.dumps({})):
        home.place._hear("command", line)
    assert home.heard == []
