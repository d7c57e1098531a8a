"""Puts the tasks of suites to versions, each once however many gates want the answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lockgate.core.errors import UsageError
from lockgate.gates.api import Asked, Served, Subject
from lockgate.gates.tasks.ask import answer
from lockgate.gates.tasks.questions import Answered, read_rows
from lockgate.gates.tasks.specs import SuiteSpec, read_suite


def suite_files(suite: str, asked: Asked) -> Sequence[Path]:
    """Returns a suite's file and those of its data; raises what reading it raises."""
    path = asked.files(suite)
    found = read_suite(path)
    return (path, *(_data(path, task.data, asked) for task in found.tasks.values()))


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
    spec = read_suite(path)
    served = asked.serve(subject)
    key = (str(path), f"{subject.digest} {subject.at or ''}")
    if key not in asked.answered:
        asked.answered[key] = _interview(spec, path, subject, served, asked)
    found: dict[str, Answered] = asked.answered[key]
    return found


def _interview(
    spec: SuiteSpec, path: Path, subject: Subject, served: Served, asked: Asked
) -> dict[str, Answered]:
    found: dict[str, Answered] = {}
    for name, task in spec.tasks.items():
        rows = read_rows(_data(path, task.data, asked), task.limit)
        title = f"{spec.suite}/{name} of {subject}"
        found[name] = answer(
            task, rows, served, subject.model, asked.scores,
            lambda done, total, title=title: asked.tell(title, done, total),  # type: ignore[misc]
        )  # fmt: skip
    return found
