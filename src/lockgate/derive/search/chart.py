"""The chart of a search: each trial's first goal in its order, and the best so far. SVG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from lockgate.derive.search.spec import SearchSpec
from lockgate.derive.search.study import Trial

_WIDE, _HIGH, _LEFT, _TOP, _BOTTOM = 720, 320, 76, 34, 44


def chart(trials: Sequence[Trial], spec: SearchSpec) -> str:
    """Returns the chart as SVG text; hovering a point shows its parameters."""
    goal, way = next(iter(spec.goal.items()))
    done = [trial for trial in trials if trial.state == "done"]
    values = [trial.values[0] for trial in done] or [0.0]
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    width = _WIDE - _LEFT - 20

    def x(number: int) -> float:
        return _LEFT + width * (number + 0.5) / max(1, len(trials))

    def y(value: float) -> float:
        return _TOP + (_HIGH - _TOP - _BOTTOM) * (1 - (value - low) / span)

    parts = [_head(f"{goal} ({way}), {len(trials)} trials by {spec.method}")]
    for tick in (low, (low + high) / 2, high):
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDE - 20}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" '
                     'stroke="#ddd"/>')  # fmt: skip
        parts.append(_text(_LEFT - 8, y(tick) + 4, f"{tick:.4g}", "end"))
    line = " ".join(f"{x(n):.1f},{y(v):.1f}" for n, v in _best_so_far(done, way))
    parts.append(f'<polyline points="{line}" fill="none" stroke="#0a7f4f" stroke-width="2"/>')
    for trial in trials:
        told = ", ".join(f"{key}={_short(value)}" for key, value in trial.parameters.items())
        place = y(trial.values[0]) if trial.values else _HIGH - _BOTTOM + 12
        colour = {"done": "#2457a6", "pruned": "#c98a00", "failed": "#b3261e"}[trial.state]
        about = f"{trial.values[0]:.5g}" if trial.values else f"{trial.state}: {trial.reason}"
        parts.append(
            f'<circle cx="{x(trial.number):.1f}" cy="{place:.1f}" r="4" fill="{colour}">'
            f"<title>{escape(f'trial {trial.number}: {told}: {about}')}</title></circle>"
        )
    parts.append(_text(_LEFT, _HIGH - 10, "blue: done, amber: pruned, red: failed; "
                       "green: the best so far", "start"))  # fmt: skip
    return "\n".join([*parts, "</svg>"]) + "\n"


def _best_so_far(done: Sequence[Trial], way: str) -> Iterator[tuple[int, float]]:
    best: float | None = None
    for trial in done:
        value = trial.values[0]
        if best is not None:
            yield trial.number, best  # as good as before until now: a stair, no slope
        better = best is None or (value < best if way == "minimize" else value > best)
        best = value if better else best
        if best is not None:
            yield trial.number, best


def _head(title: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDE} {_HIGH}" '
        f'font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" fill="#fff"/>'
        f"\n{_text(_LEFT, 20, title, 'start')}"
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
