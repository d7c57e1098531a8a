"""The one place that prints. stdout is data, stderr everything else.

Modes: human (tables, colours on a terminal), json (one value, or one a line while watching), quiet
(names only).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Literal

from rich.console import Console, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from lockgate.core.errors import LockgateError
from lockgate.store.api import Progress as Far
from lockgate.store.api import Report

_WIDE = 400
"""Columns where nobody looks: a file or a pipe gets whole cells."""

Mode = Literal["human", "json", "quiet"]


class Output:
    """What a command has to say, in the mode that was asked for."""

    def __init__(self, mode: Mode = "human", *, color: bool = True) -> None:
        self.mode = mode
        self.color = color
        self._out = Console(highlight=False, soft_wrap=True, no_color=not color or None)
        self._err = Console(
            stderr=True, highlight=False, soft_wrap=True, no_color=not color or None
        )
        if not self._out.is_terminal:
            self._out.width = _WIDE

    @property
    def live(self) -> bool:
        """True when a person watches a terminal."""
        return self.mode == "human" and self._err.is_terminal

    def value(self, value: object, *, quiet: object = None) -> None:
        """Gives a value: JSON in json mode, `quiet` (a name) in quiet mode, nothing for people."""
        if self.mode == "json":
            _write(sys.stdout, json.dumps(value, ensure_ascii=False, default=str))
        elif self.mode == "quiet" and quiet is not None:
            for name in quiet if isinstance(quiet, list) else [quiet]:
                _write(sys.stdout, clean(str(name)))

    def say(self, text: str, *, style: str | None = None) -> None:
        """Says a line to people, on stdout."""
        if self.mode == "human":
            self._out.print(Text(clean(text)), style=style)

    def show(self, what: RenderableType) -> None:
        """Shows something rich to people, on stdout."""
        if self.mode == "human":
            self._out.print(what)

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Shows a table to people."""
        table = Table(box=None, pad_edge=False, header_style="dim")
        for header in headers:
            right = header.endswith(">")
            side: Literal["left", "right"] = "right" if right else "left"
            table.add_column(header.rstrip(">"), justify=side, overflow="fold")
        for row in rows:
            table.add_row(*(escape(clean(str(cell))) for cell in row))
        self.show(table)

    def note(self, text: str) -> None:
        """Says a line beside the data, on stderr."""
        if self.mode == "human":
            self._err.print(Text(clean(text)), style="dim")

    def hint(self, text: str) -> None:
        """Says what to do next."""
        self.note(f"next: {text}")

    def error(self, error: LockgateError) -> None:
        """Says what went wrong and what to do about it, on stderr in every mode."""
        if self.mode == "json":
            body = {"error": {"code": error.code, "message": error.message, "hint": error.hint,
                              "exit_code": error.exit_code, "docs": error.docs}}  # fmt: skip
            _write(sys.stderr, json.dumps(body, ensure_ascii=False))
            return
        head = Text("error: ", style="bold red")
        self._err.print(head + Text(clean(error.message), style="default"))
        if error.hint:
            self._err.print(Text(f"  try: {clean(error.hint)}", style="dim"))

    @contextmanager
    def progress(self) -> Iterator[Report]:
        """Shows bytes with totals while a long work reports; silent when nobody watches."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TextColumn("{task.fields[files]}"),
        )
        with Progress(*columns, console=self._err, disable=not self.live, transient=True) as bar:
            task = bar.add_task("", total=None, files="", visible=False)

            def report(far: Far) -> None:
                bar.update(
                    task,
                    description=far.phase,
                    total=far.total_bytes,
                    completed=far.done_bytes,
                    files=f"{far.done_files}/{far.total_files} files",
                    visible=True,
                )

            yield report

    @contextmanager
    def counting(self, unit: str) -> Iterator[Callable[[int, int], None]]:
        """Shows how many `unit` of all are done while a long work reports."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, console=self._err, disable=not self.live, transient=True) as bar:
            task = bar.add_task(unit, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)

    @contextmanager
    def stepping(self) -> Iterator[Callable[[str, float, float], None]]:
        """Shows how far a step is, in its own unit; silent when nobody watches."""
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
        with Progress(*columns, console=self._err, disable=not self.live, transient=True) as bar:
            task = bar.add_task("", total=None, visible=False)

            def report(text: str, done: float, total: float) -> None:
                whole = total or None
                bar.update(task, description=clean(text), completed=done, total=whole, visible=True)

            yield report

    @contextmanager
    def watching(self) -> Iterator[Callable[[RenderableType], None]]:
        """Redraws one picture in place on a terminal; elsewhere the caller prints lines."""
        with Live(console=self._err, auto_refresh=False, transient=True) as live:
            yield lambda picture: live.update(picture, refresh=True)


def clean(text: str) -> str:
    """Returns `text` without control characters: no name from outside drives a terminal."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text
    )


def _write(stream: IO[str], line: str) -> None:
    stream.write(line + "\n")
    stream.flush()
