"""A model card, made of what was measured and recorded; nothing in it is typed by hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lockgate.core.digests import short
from lockgate.core.errors import UsageError
from lockgate.core.units import duration, size
from lockgate.store.durable import write_durably

View = Mapping[str, Any]


def write_card(file: Path, view: View, answers: Sequence[View], target: str) -> None:
    """Writes the card of a version as Markdown; raises UsageError when it can't be written."""
    text = "\n".join(_lines(view, answers, target)) + "\n"
    try:
        write_durably(file, text.encode(), file.parent)
    except OSError as error:
        raise UsageError(f"{file} can't be written: {error.strerror}") from error


def _lines(view: View, answers: Sequence[View], target: str) -> Iterator[str]:
    yield f"# {view['model']} v{view['number']}"
    yield ""
    yield f"`{view['digest']}`, {size(view['bytes_total'])}, {view['artifacts']} files, "
    yield f"published {view['at'][:19]} by {view['publisher']}."
    yield ""
    yield "## Where it comes from"
    for edge in view["lineage"]:
        yield f"* {edge['relation']} {edge['model']} ({short(edge['digest'])})"
    if not view["lineage"]:
        yield "* nothing is recorded"
    for made in view["derived"]:
        recipe = made["recipe"]
        yield ""
        yield f"Made by the step `{recipe['step']}`, seed {recipe['seed']}, in "
        yield f"{duration(made['seconds'])} and {size(made['peak_bytes'])} of memory, with "
        yield ", ".join(f"{n} {v}" for n, v in recipe["libraries"].items()) or "no libraries"
        yield ""
        yield "| parameter | value |"
        yield "|---|---|"
        yield from (f"| {_cell(n)} | {_cell(v)} |" for n, v in recipe["parameters"].items())
        yield ""
        yield "| measured by the step | |"
        yield "|---|---|"
        yield from (f"| {_cell(name)} | {value:.6g} |" for name, value in made["metrics"].items())
    yield ""
    yield f"## What gates found, for {target}"
    yield ""
    yield "| gate | check | outcome | value | of what serves | rows | found |"
    yield "|---|---|---|---|---|---|---|"
    for answer in answers:
        verdict = answer["verdict"]
        for check in verdict["checks"]:
            yield (
                f"| {answer['gate']} | {_cell(check['check'])} | {check['outcome']} | "
                f"{_number(check['value'])} | {_number(check['baseline'])} | {check['n'] or ''} | "
                f"{_cell(check['reason'])} |"
            )
        if not verdict["checks"]:
            reason = _cell(verdict["reason"])
            yield f"| {answer['gate']} | | {verdict['outcome']} | | | | {reason} |"
    yield ""
    yield "What these gates do not prove is said in lockgate's documentation (docs/gates.md)."


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
