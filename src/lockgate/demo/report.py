"""The end of the demo: its numbers as tables, and the page with the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from lockgate.core.units import duration, size
from lockgate.demo.chart import CSS, Mark, chart
from lockgate.demo.load import Seen

Json = dict[str, Any]
Table = tuple[Sequence[str], Sequence[Sequence[object]]]


@dataclass(slots=True, kw_only=True)
class Story:
    """What happened: releases as views, what callers saw, what the gateway measured."""

    gateway: str
    versions: dict[str, tuple[str, int]] = field(default_factory=dict)
    releases: list[Json] = field(default_factory=list)
    seen: Sequence[Seen] = ()
    series: dict[str, list[Json]] = field(default_factory=dict)
    chain: Json = field(default_factory=dict)
    bytes_published: int = 0
    bytes_stored: int = 0

    @property
    def lost(self) -> list[Seen]:
        """Requests that were refused, cut or lost on the way: a release's fault, not a model's."""
        return [one for one in self.seen if one.fault == "path"]

    @property
    def went_well(self) -> bool:
        """True when v1 and v2 serve as they should, v3 was caught, and nothing was lost."""
        right = {1: "promoted", 2: "promoted", 3: "reverted"}
        ends = all(view["phase"] == right[view["candidate"]["number"]] for view in self.releases)
        return ends and len(self.releases) == 6 and not self.lost and not self.chain["findings"]

    def name(self, digest: str) -> str:
        """Returns `acme/chat v2` for a version's digest."""
        model, number = self.versions.get(digest, ("?", 0))
        return f"{model} v{number}"

    def summary(self) -> Json:
        """Returns the story as one JSON value."""
        return {
            "went_well": self.went_well,
            "requests": len(self.seen),
            "lost": len(self.lost),
            "lost_details": [one.detail for one in self.lost[:5]],
            "releases": {view["id"]: view["phase"] for view in self.releases},
            "caught_after": {view["id"]: _candidate_requests(self, view) for view in self.releases},
            "bytes_published": self.bytes_published,
            "bytes_stored": self.bytes_stored,
        }


def rows(story: Story) -> tuple[Table, Table, list[str]]:
    """Returns the table of versions, the table of releases, and the sentences below them."""
    versions = [_version_row(story, digest) for digest in story.versions]
    releases = [_release_row(story, view) for view in story.releases]
    heads = ("version", "requests>", "right>", "own errors>", "lost>", "p50>", "p95>")
    columns = ("release", "what", "ended", "took", "steps", "requests it got>", "because")
    return (heads, versions), (columns, releases), _notes(story)


def _version_row(story: Story, digest: str) -> tuple[object, ...]:
    mine = [one for one in story.seen if one.version == digest]
    answered = [one for one in mine if one.right is not None]
    times = sorted(one.duration_s for one in answered)
    right = (
        f"{100 * sum(bool(o.right) for o in answered) / len(answered):.0f}%" if answered else "–"
    )
    totals = [row for rows in story.series.values() for row in rows if row["version"] == digest]
    return (
        story.name(digest),
        sum(row["requests"] for row in totals),
        right,
        sum(row["failed"] for row in totals),
        sum(one.fault == "path" for one in mine),
        _time(times, 0.5),
        _time(times, 0.95),
    )


def _time(values: Sequence[float], share: float) -> str:
    return f"{1000 * values[int(len(values) * share)]:.0f} ms" if values else "–"


def _release_row(story: Story, view: Json) -> tuple[object, ...]:
    before = f"v{view['baseline']['number']} → " if view["baseline"] else ""
    blame = ""
    if view["rollback"]:
        blame = view["rollback"]["reason"]
    return (
        view["id"],
        f"{view['model']} {before}v{view['candidate']['number']}",
        view["phase"],
        duration(view["elapsed_s"]),
        _step_times(view),
        _candidate_requests(story, view),
        blame,
    )


def _step_times(view: Json) -> str:
    """Returns how long each step took, from the timeline: `10% 7.3 s · 50% 7.4 s`."""
    parts: list[str] = []
    started: float | None = None
    percent = ""
    for event in view["timeline"]:
        at = datetime.fromisoformat(event["at"]).timestamp()
        if event["kind"] == "StepStarted":
            started, percent = at, view["steps"][event["body"]["step"]]["percent"]
        if event["kind"] in ("StepPassed", "TrafficReverted") and started is not None:
            parts.append(f"{percent} {duration(at - started)}")
            started = None
    return " · ".join(parts)


def _candidate_requests(story: Story, view: Json) -> int:
    end = datetime.fromisoformat(view["ended_at"]).timestamp() if view["ended_at"] else 1e18
    digest = view["candidate"]["digest"]
    found = (row for row in story.series.get(view["model"], ()) if row["version"] == digest)
    return sum(row["requests"] for row in found if row["at"] <= end)


def _notes(story: Story) -> list[str]:
    share = 100 * story.bytes_stored / max(story.bytes_published, 1)
    chain = "BROKEN" if story.chain["findings"] else "whole"
    return [
        f"{len(story.seen):,} requests, {sum(one.stream for one in story.seen):,} of them streams; "
        f"{len(story.lost)} lost because of a release",
        f"{size(story.bytes_stored)} stored for {size(story.bytes_published)} published "
        f"({share:.0f}%)",
        f"{story.chain['events']} events in the ledger, the chain is {chain}",
    ]


def write_page(story: Story, path: Path) -> Path:
    """Writes the report as one HTML file that needs nothing else, and returns its path."""
    versions, releases, notes = rows(story)
    charts = "".join(
        chart(model, story.series[model], _names(story, model), _marks(story, model))
        for model in sorted(story.series)
    )
    body = (
        f"<h1>lockgate demo</h1><p>{'<br>'.join(escape(note) for note in notes)}</p>{charts}"
        f"<h2>Versions</h2>{_table(versions)}<h2>Releases</h2>{_table(releases)}"
    )
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>lockgate demo</title>'
        f'<meta name="viewport" content="width=device-width"><style>{CSS}</style>{body}</html>\n'
    )
    path.write_text(page, "utf-8")
    return path


def _names(story: Story, model: str) -> dict[str, str]:
    found = ((digest, name) for digest, name in story.versions.items() if name[0] == model)
    return {digest: f"v{number}" for digest, (_, number) in found}


def _marks(story: Story, model: str) -> list[Mark]:
    """Returns what happened on a model's route, for the time axis."""
    words = {"ReleaseOpened": "release", "RollbackStarted": "caught", "ReleasePromoted": "promoted"}
    return [
        Mark(
            at=datetime.fromisoformat(event["at"]).timestamp(),
            text=f"v{view['candidate']['number']} {words[event['kind']]}",
            bad=event["kind"] == "RollbackStarted",
        )
        for view in story.releases
        if view["model"] == model
        for event in view["timeline"]
        if event["kind"] in words
    ]


def _table(table: Table) -> str:
    heads, lines = table
    right = [head.endswith(">") for head in heads]

    def cells(values: Sequence[object], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=r' if number else ''}>{escape(str(value).rstrip('>'))}</{tag}>"
            for value, number in zip(values, right, strict=True)
        )

    body = "".join(f"<tr>{cells(line, 'td')}</tr>" for line in lines)
    return f"<div class=scroll><table><tr>{cells(heads, 'th')}</tr>{body}</table></div>"
