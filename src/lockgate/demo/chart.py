"""Two panels over one time axis, as SVG made here: the traffic split and the latency."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Any

Json = dict[str, Any]
Scale = Callable[[float], float]

_WIDTH, _LEFT, _RIGHT = 960, 56, 16
_SPLIT_TOP, _SPLIT_H, _LAT_H, _GAP = 56, 120, 150, 34
_GAP_S = 3.0

CSS = """
:root{color-scheme:light dark;--ink:#1c2430;--dim:#66707d;--line:#d9dee5;--page:#fff;--bad:#c4314b;
--c0:#3b6fd4;--c1:#1f9d76;--c2:#d9822b}
@media(prefers-color-scheme:dark){:root{--ink:#e7ebf0;--dim:#97a2b0;--line:#323a45;--page:#14181e;
--bad:#ff6b81;--c0:#7aa5ff;--c1:#4fd1a5;--c2:#ffb366}}
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;
color:var(--ink);background:var(--page)}
h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:1.6rem 0 .4rem}
svg{width:100%;height:auto;display:block}svg text{font:12px system-ui,sans-serif;fill:var(--dim)}
svg .grid{stroke:var(--line)}svg .name{fill:var(--ink);font-weight:600}
svg .mark{stroke:var(--dim);stroke-dasharray:3 3}svg .bad{stroke:var(--bad)}
svg text.bad{fill:var(--bad);stroke:none}
.c0{fill:var(--c0);stroke:var(--c0)}.c1{fill:var(--c1);stroke:var(--c1)}
.c2{fill:var(--c2);stroke:var(--c2)}.area{stroke:none;fill-opacity:.85}
.line{fill:none;stroke-width:2}.p95{stroke-width:1;stroke-opacity:.55}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.9rem}
th,td{text-align:left;white-space:nowrap;vertical-align:top;padding:.25rem .8rem .25rem 0;
border-bottom:1px solid var(--line)}td:last-child{white-space:normal}
th{color:var(--dim);font-weight:500}.r{text-align:right}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A moment worth a line on the time axis; `at` in seconds since the epoch."""

    at: float
    text: str
    bad: bool = False


def chart(title: str, rows: Sequence[Json], names: Mapping[str, str], marks: Sequence[Mark]) -> str:
    """Returns an SVG of a model's rows (of `series`): share by version, p50 and p95 in ms."""
    if not rows:
        return ""
    begin, end = float(rows[0]["at"]), float(rows[-1]["at"]) + 1.0
    inner = _WIDTH - _LEFT - _RIGHT

    def x(at: float) -> float:
        return _LEFT + inner * (at - begin) / max(float(end - begin), 1.0)

    versions = [digest for digest in names if any(row["version"] == digest for row in rows)]
    height = _SPLIT_TOP + _SPLIT_H + _GAP + _LAT_H + 30
    parts = [
        f'<h2>{escape(title)}</h2><svg viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="Traffic split and latency of {escape(title)} over time">',
        _legend(versions, names),
        _split(rows, versions, x),
        _latency(rows, versions, x),
        _marks(marks, x, begin, height - 30),
        _axis(begin, end, x, height),
        "</svg>",
    ]
    return "".join(parts)


def _legend(versions: Sequence[str], names: Mapping[str, str]) -> str:
    return "".join(
        f'<rect class="c{i} area" x="{_LEFT + 60 * i}" y="4" width="12" height="12" rx="2"/>'
        f'<text class="name" x="{_LEFT + 60 * i + 17}" y="14">{escape(names[digest])}</text>'
        for i, digest in enumerate(versions)
    )


def _split(rows: Sequence[Json], versions: Sequence[str], x: Scale) -> str:
    """One thin bar a second, stacked by version: what callers really got."""
    slots: dict[float, dict[str, int]] = defaultdict(dict)
    for row in rows:
        slots[row["at"]][row["version"]] = row["requests"]
    bars = []
    for at, counts in sorted(slots.items()):
        whole, low = sum(counts.values()), 0.0
        for i, digest in enumerate(versions):
            share = counts.get(digest, 0) / whole
            top = _SPLIT_TOP + _SPLIT_H * (1 - low - share)
            low += share
            if share:
                bars.append(
                    f'<rect class="c{i} area" x="{x(at):.1f}" y="{top:.1f}" '
                    f'width="{x(at + 1) - x(at) + 0.3:.1f}" height="{_SPLIT_H * share:.1f}"/>'
                )
    labels = "".join(
        f'<text x="{_LEFT - 8}" y="{_SPLIT_TOP + _SPLIT_H * (1 - p) + 4:.0f}" '
        f'text-anchor="end">{100 * p:.0f}%</text>'
        for p in (0.0, 0.5, 1.0)
    )
    return "".join(bars) + labels


def _latency(rows: Sequence[Json], versions: Sequence[str], x: Scale) -> str:
    top = _SPLIT_TOP + _SPLIT_H + _GAP
    highest: float = 1000 * max((row["p95"] or 0.0 for row in rows), default=1.0) or 1.0
    limit = next(s * 10.0**e for e in range(8) for s in (1, 2, 5) if s * 10.0**e >= highest)

    def y(ms: float) -> float:
        return top + _LAT_H * (1 - ms / limit)

    parts = [
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(v):.1f}" y2="{y(v):.1f}"/>'
        f'<text x="{_LEFT - 8}" y="{y(v) + 4:.1f}" text-anchor="end">{v:g} ms</text>'
        for v in (0, limit / 2, limit)
    ]
    parts.append(f'<text x="{_LEFT}" y="{top - 8}">latency: p50 (thick) and p95 (thin)</text>')
    for i, digest in enumerate(versions):
        mine = [row for row in rows if row["version"] == digest and row["p50"] is not None]
        for key, style in (("p95", "line p95"), ("p50", "line")):
            points = [(x(row["at"] + 0.5), y(1000 * row[key]), row["at"]) for row in mine]
            parts.append(f'<path class="c{i} {style}" style="fill:none" d="{_path(points)}"/>')
    return "".join(parts)


def _path(points: Sequence[tuple[float, float, float]]) -> str:
    """Returns the line through (x, y) of `points`, broken where seconds are missing."""
    if not points:
        return ""
    steps = [f"M{points[0][0]:.1f},{points[0][1]:.1f}"]
    for (_, _, before), (px, py, at) in pairwise(points):
        steps.append(f"{'L' if at - before <= _GAP_S else 'M'}{px:.1f},{py:.1f}")
    return "".join(steps)


def _marks(marks: Sequence[Mark], x: Scale, begin: float, bottom: float) -> str:
    shown = sorted((mark for mark in marks if mark.at >= begin), key=lambda mark: mark.at)
    parts, last = [], -100.0
    for mark in shown:
        at, bad = x(mark.at), " bad" if mark.bad else ""
        row = 46 if at - last > 90 else 32
        last = at if row == 46 else last
        parts.append(
            f'<line class="mark{bad}" x1="{at:.1f}" x2="{at:.1f}" y1="{row + 4}" y2="{bottom}"/>'
            f'<text class="{bad.strip()}" x="{at + 3:.1f}" y="{row}">{escape(mark.text)}</text>'
        )
    return "".join(parts)


def _axis(begin: float, end: float, x: Scale, height: float) -> str:
    step = next(
        s for s in (5, 10, 20, 30, 60, 120, 300, 600) if (end - begin) / s <= 12 or s == 600
    )
    ticks = range(0, int(end - begin) + 1, step)
    return "".join(
        f'<text x="{x(begin + t):.1f}" y="{height - 10}" text-anchor="middle">{t} s</text>'
        for t in ticks
    )
