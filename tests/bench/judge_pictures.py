"""Draws the pictures of docs/judge.md from runs through the real case: SVG, made here.

python tests/bench/judge_pictures.py
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log10
from pathlib import Path

import numpy as np
from bench_judge import CHECKS, open_case
from judge_traffic import columns, release

from lockgate.analysis.checks import Look
from lockgate.analysis.rows import take

DOCS = Path(__file__).resolve().parents[2] / "docs"
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 720, 300, 60, 150, 24, 40
_CSS = """
svg{background:#fff}text{font:12px system-ui,sans-serif;fill:#66707d}.ink{fill:#1c2430}
.grid{stroke:#d9dee5}.limit{stroke:#c4314b;stroke-dasharray:5 3}path{fill:none;stroke-width:1.3}
.quiet{stroke:#9aa5b1;stroke-opacity:.55}.loud{stroke:#c4314b;stroke-opacity:.8}
.c0{stroke:#3b6fd4}.c1{stroke:#1f9d76}.c2{stroke:#d9822b}.c3{stroke:#7d4fc4}
.tc0{fill:#3b6fd4}.tc1{fill:#1f9d76}.tc2{fill:#b9661a}.tc3{fill:#7d4fc4}.tlimit{fill:#c4314b}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A curve: x and y (y is drawn on a logarithmic axis), its style, and a word at its end."""

    x: Sequence[float]
    y: Sequence[float]
    style: str
    word: str = ""


def draw(
    lines: Sequence[Line], *, limit: float, limit_word: str, low: float, high: float, across: str
) -> str:
    """Returns an SVG of `lines` with a threshold; `low` and `high` bound y."""
    most = max(max(line.x) for line in lines)
    inner, tall = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def at(x: float, y: float) -> tuple[float, float]:
        part = (log10(min(max(y, low), high)) - log10(low)) / (log10(high) - log10(low))
        return _LEFT + inner * x / most, _TOP + tall * (1 - part)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}">'
        f"<style>{_CSS}</style>"
    ]
    for power in range(int(log10(low)), int(log10(high)) + 1):
        y = at(0, 10.0**power)[1]
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_LEFT + inner}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g}</text>'
        )
    for line in lines:
        points = [at(x, y) for x, y in zip(line.x, line.y, strict=True)]
        path = "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<path class="{line.style}" d="{path}"/>')
    y = at(0, limit)[1]
    words = [(at(0, line.y[-1])[1], line.word, f"t{line.style}") for line in lines if line.word]
    parts += _apart([*words, (y, limit_word, "tlimit")], _LEFT + inner + 8)
    parts.append(
        f'<line class="limit" x1="{_LEFT}" x2="{_LEFT + inner}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{_LEFT + inner / 2:.0f}" y="{_HEIGHT - 8}" text-anchor="middle">{across}</text>'
    )
    ticks = [
        f'<text x="{at(most * k / 4, low)[0]:.0f}" y="{_HEIGHT - 24}" text-anchor="middle">'
        f"{most * k / 4:,.0f}</text>"
        for k in range(5)
    ]
    return "".join([*parts, *ticks, "</svg>\n"])


def _apart(words: Sequence[tuple[float, str, str]], x: float) -> list[str]:
    """Returns words at their heights, those that would lie over one another moved down."""
    found, last = [], float("-inf")
    for y, word, style in sorted(words):
        last = max(y + 4, last + 15)
        found.append(f'<text class="{style}" x="{x:.0f}" y="{last:.1f}">{word}</text>')
    return found


def watch(seed: int, effect: str, share: float, seconds: float) -> tuple[list[float], np.ndarray]:
    """Returns minutes, and at each the evidence over all, then each check's proof."""
    rows = columns(release(seed, effect=effect, share=share, seconds=seconds))
    ends = np.maximum.accumulate(rows["at"] + rows["duration"])  # type: ignore[operator]
    case, begin, found, minutes = open_case(0.01), 0, [], []
    for second in np.arange(10, seconds + 1, 10):
        end = int(np.searchsorted(ends, 1e6 + second))
        case.add_rows(take(rows, slice(begin, end)))
        begin = end
        checks = case.verdict(Look(now=0.0)).checks
        found.append([np.mean([c.e_value for c in checks]), *(c.proof for c in checks)])
        minutes.append(second / 60)
    return minutes, np.array(found)


def main() -> None:
    """Writes both pictures."""
    lines = []
    for effect, style, runs in (("none", "quiet", 30), ("mean_5", "loud", 8)):
        for seed in range(runs):
            minutes, found = watch(7_000_000 + seed, effect, 0.1, 1200)
            lines.append(Line(x=minutes, y=found[:, 0].tolist(), style=style))
    picture = draw(
        lines, limit=100, limit_word="1/alpha: fail", low=1e-3, high=1e5,
        across="minutes; 30 unchanged releases (grey), 8 that are 5 % slower (red)",
    )  # fmt: skip
    (DOCS / "judge-evidence.svg").write_text(picture, "utf-8")
    minutes, found = watch(7_100_000, "none", 0.5, 1500)
    proofs = np.maximum.accumulate(found[:, 1:], axis=0)
    lines = [
        Line(x=minutes, y=proofs[:, i].tolist(), style=f"c{i}", word=check.signal)
        for i, check in enumerate(CHECKS)
    ]
    picture = draw(
        lines, limit=20, limit_word="1/beta: proven", low=0.1, high=1e6,
        across="minutes of an unchanged release at 50 %, 40 requests/s: the proof of each check",
    )  # fmt: skip
    (DOCS / "judge-proof.svg").write_text(picture, "utf-8")


if __name__ == "__main__":
    main()
