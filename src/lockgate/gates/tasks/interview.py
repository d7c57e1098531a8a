"""Puts the tasks of suites to versions, each once however many gates want the answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lockgate.core.errors import UsageError
from lockgate.gates.api import Asked, Subject
from lockgate.gates.tasks.ask import answer, answer_outside, read_outside
from lockgate.gates.tasks.questions import Answered, read_rows
from lockgate.gates.tasks.specs import HarnessTask, Task, read_suite


def suite_files(suite: str, asked: Asked) -> Sequence[Path]:
    """Returns a suite's file and those of its data; raises what reading it raises."""
    path = asked.files(suite)
    found = read_suite(path)
    return (path, *(file for task in found.tasks.values() for file in _read(path, task, asked)))


def _read(suite: Path, task: Task, asked: Asked) -> Sequence[Path]:
    if isinstance(task, HarnessTask):
        return read_outside(task, _folder(suite, task.include))
    return (_data(suite, task.data, asked),)


def _folder(suite: Path, name: str) -> Path:
    """Returns a folder beside the suite; raises UsageError for none, or one that is elsewhere."""
    folder = suite.parent / name
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}", hint="`include` is beside the suite")
    inside = folder.resolve() != suite.parent.resolve()
    if not inside or not folder.resolve().is_relative_to(suite.parent.resolve()):
        raise UsageError(f"{name} is no folder below the suite's")
    return folder


def _data(suite: Path, name: str, asked: Asked) -> Path:
    beside = suite.parent / name
    if ":" not in name and beside.is_file():
        if not beside.resolve().is_relative_to(suite.parent.resolve()):
            raise UsageError(f"{name} leads out of the suite's folder")
        return beside
    return asked.files(name)


def interview(suite: str, subject: Subject, asked: Asked) -> dict[str, Answered]:
    """Returns what each task of `suite` found out of `subject`, by the task's name."""
    path = asked.files(suite)
    key = (str(path), subject.asked_at)
    if key not in asked.answered:
        asked.answered[key] = _interview(path, subject, asked)
    found: dict[str, Answered] = asked.answered[key]
    return found


def _interview(path: Path, subject: Subject, asked: Asked) -> dict[str, Answered]:
    spec = read_suite(path)
    served = asked.serve(subject)
    found: dict[str, Answered] = {}
    for name, task in spec.tasks.items():
        title = f"{spec.suite}/{name} of {subject}"
        if isinstance(task, HarnessTask):
            asked.tell(title, 0, 0)
            folder = _folder(path, task.include)
            found[name] = answer_outside(task, folder, served, subject.model)
            continue
        rows = read_rows(_data(path, task.data, asked), task.limit)
        found[name] = answer(
            task, rows, served, subject.model, asked.scores,
            lambda done, total, title=title: asked.tell(title, done, total),  # type: ignore[misc]
        )  # fmt: skip
    return found
