"""Pictures in text: a release as a tree with the split bar, verdicts, timelines."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from lockgate.cli.output import clean
from lockgate.core.digests import short
from lockgate.core.units import duration

Json = dict[str, Any]
_BAR = 40
_WIDE = 10.0
"""A difference of more than ten times the baseline is no bound that says anything."""
_MARKS = {"pass": ("✔", "green"), "fail": ("✘", "red"), "hold": ("●", "yellow")}
_PHASES = {
    "promoted": "green", "reverted": "red", "failed": "red", "refused": "red",
    "reverting": "yellow",
}  # fmt: skip


def release_tree(view: Json) -> RenderableType:
    """Returns a release as people look at it: steps, split, checks, replicas, what is next."""
    tree = Tree(split_line(view), guide_style="dim")
    verdict = view["verdict"]
    for check in verdict["checks"] if verdict else ():
        tree.add(check_line(check))
    for side in view["replicas"]:
        text = f"replicas   {side['version']} {side['ready']}/{side['total']} ready"
        if side["restarts"]:
            text += f", {side['restarts']} restarts"
        tree.add(Text(clean(text)))
    return Group(head_line(view), steps_line(view), tree, next_line(view))


def head_line(view: Json) -> Text:
    """Returns `acme/chat  v1 → v2   rel-2   local   baking 10%  12 s of 10 m`."""
    line = Text()
    line.append(view["model"], style="bold")
    before = f"v{view['baseline']['number']} → " if view["baseline"] else ""
    line.append(f"  {before}v{view['candidate']['number']}   {view['id']}   {view['target']}   ")
    held = view["held"]
    phase = f"held ({held['because']})" if held else view["phase"]
    line.append(phase, style="yellow" if held else _PHASES.get(view["phase"], "cyan"))
    if view["phase"] in ("shifting", "baking"):
        line.append(f" {view['percent']}")
    if view["bake_left_s"]:
        line.append(f"  {duration(view['bake_left_s'])} to go")
    line.append(f"   {duration(view['elapsed_s'])}", style="dim")
    return line


def steps_line(view: Json) -> Text:
    """Returns the steps with what is done, what is now and what is later."""
    line = Text("  ")
    for step in view["steps"]:
        mark, style = {"done": ("✔", "green"), "now": ("●", "cyan"), "later": ("", "dim")}[
            step["state"]
        ]
        gate = " (approval)" if step["approval"] else ""
        line.append(f"{step['percent']}{gate} {mark}".rstrip() + "   ", style=style)
    return line


def split_line(view: Json) -> Text:
    """Returns the bar of the split in force, with its numbers."""
    weight = view["split"].get(view["candidate"]["digest"], 0)
    whole = sum(view["split"].values())
    if not whole:
        return Text("no traffic yet", style="dim")
    cells = round(_BAR * weight / whole)
    cells = max(cells, 1) if weight else 0
    baseline = f"v{view['baseline']['number']} " if view["baseline"] else ""
    line = Text(baseline)
    line.append("█" * (_BAR - cells), style="blue")
    line.append("░" * cells, style="magenta")
    line.append(f" v{view['candidate']['number']}   ")
    line.append(f"{100 * (whole - weight) / whole:g} / {100 * weight / whole:g}", style="bold")
    return line


def check_line(check: Json) -> Text:
    """Returns one check: value, baseline, limit, n, evidence, outcome."""
    mark, style = _MARKS[check["outcome"]]
    line = Text(f"{mark} ", style=style)
    line.append(f"{check['signal']:<18}")
    before = (
        f"{figure(check['baseline'], check['unit'])} → " if check["baseline"] is not None else ""
    )
    line.append(f"{before}{figure(check['value'], check['unit'])}  ")
    if check["limit"] is not None:
        line.append(f"limit {figure(check['limit'], check['unit'])}  ", style="dim")
    line.append(f"n={check['n_baseline']:,} → {check['n']:,}  ", style="dim")
    if check["e_value"] is not None:
        line.append(
            f"against {evidence(check['e_value'])} of {check['threshold']:g}  ", style="dim"
        )
    if check["proof"] is not None:
        line.append(
            f"for {evidence(check['proof'])} of {check['proof_threshold']:g}  ", style="dim"
        )
    if check["low"] is not None and check["high"] is not None and check["high"] < _WIDE:
        line.append(f"{100 * check['low']:+.3g}…{100 * check['high']:+.3g}%  ", style="dim")
    line.append(check["outcome"], style=style)
    return line


def evidence(value: float) -> str:
    """Returns an e-value; beyond a million nobody needs its digits."""
    return "> 1e6" if value > 1e6 else f"{value:.3g}"


def figure(value: float | None, unit: str) -> str:
    """Returns a value with its unit, in the size that people read."""
    if value is None:
        return "–"
    if unit == "":
        return f"{100 * value:.3g}%"
    if unit.startswith("s") and abs(value) < 1:
        return f"{1000 * value:.3g} m{unit}"
    return f"{value:.3g} {unit}"


def next_line(view: Json) -> Text:
    """Returns what will happen or what a person can do."""
    name, held = view["id"], view["held"]
    if view["trouble"] and not view["final"]:
        return Text(clean(f"trouble: {view['trouble']}"), style="red")
    if held and held["because"] == "approval":
        return Text(f"waits: lockgate approve {name} --reason …", style="yellow")
    if held:
        return Text(clean(f"held: {held['reason']}"), style="yellow")
    if view["rollback"]:
        return Text(clean(f"rolled back: {view['rollback']['reason']}"), style="red")
    if view["phase"] == "failed":
        return Text(clean(f"failed: {view['note']}"), style="red")
    if view["final"]:
        return Text(f"{view['phase']} after {duration(view['elapsed_s'])}", style="dim")
    verdict = view["verdict"]
    said = f"{verdict['outcome']}: {verdict['reason']} · " if verdict else ""
    return Text(
        clean(
            f"{said}lockgate hold {name} --reason … · lockgate rollback {view['model']} --reason …"
        ),
        style="dim",
    )


def timeline(view: Json) -> list[str]:
    """Returns the events of a release as lines."""
    return [f"{event['at']}  {event['actor']:<10} {event['text']}" for event in view["timeline"]]


def plan_lines(plan: Json) -> list[str]:
    """Returns a plan as sentences."""
    before = f"v{plan['baseline']['number']} → " if plan["baseline"] else "first: "
    lines = [
        f"{plan['model']}  {before}v{plan['candidate']['number']} "
        f"({short(plan['candidate']['digest'])})  to {plan['target']}  by {plan['strategy']}",
        f"  replicas   {plan['serving']['replicas']}, started and warmed before any traffic",
        f"  to move    {plan['bytes_to_move']:,} bytes",
    ]
    lines += [_step_line(number, step, plan) for number, step in enumerate(plan["steps"], 1)]
    lines.extend(f"  check      {_rule(check)}" for check in plan["checks"])
    if not plan["checks"] and plan["baseline"]:
        lines.append("  check      none: every step passes when its time is over")
    lines += _outlook_lines(plan.get("outlook"))
    last = f"previous version kept ready for {duration(plan['keep_previous_s'])} after promotion"
    lines.append(
        f"  at most    {plan['alpha']:g} chance to fail a version that is not worse, "
        f"{plan['beta']:g} to pass one that is"
    )
    if plan["slo"] is not None:
        lines.append(f"  objective  {100 * plan['slo']:g}% of requests: it goes back when it burns")
    if plan["windows"]:
        lines.append(f"  only       {'; '.join(plan['windows'])}")
    lines.append(f"  earliest   {duration(plan['earliest_s'])}; {last}")
    return lines


def _outlook_lines(outlook: Json | None) -> list[str]:
    """Returns what the proof will probably take at today's traffic."""
    if outlook is None:
        return []
    lines = [f"  probably   {outlook['advice']}"]
    for check in outlook["checks"]:
        takes = check["safe_requests"]
        need = "never" if takes is None else f"{takes:,.0f} requests of the candidate"
        time = f", {duration(check['safe_s'])}" if check["safe_s"] is not None else ""
        lines.append(
            f"    at {100 * check['share']:g}%  {check['signal']} is proven after {need}{time}"
        )
    return lines


_NEEDS = {
    "safe": "until proven within every limit", "sane": "until disasters are ruled out", "seen": "",
}  # fmt: skip


def _step_line(number: int, step: Json, plan: Json) -> str:
    parts = [f"{step['weight'] / 100:g}%"]
    if step["mirror"]:
        parts = [f"copies of {step['mirror'] / 100:g}%"]
    if step["replicas"] is not None:
        whole = plan["serving"]["replicas"]
        theirs = whole if step["baseline_replicas"] is None else step["baseline_replicas"]
        parts.append(f"{step['replicas']} new and {theirs} old replicas")
    parts.append(f"bake {duration(step['bake_s'])}" if step["bake_s"] else "no bake")
    if step["min_requests"]:
        parts.append(f"≥ {step['min_requests']:,} requests")
    if plan["checks"] and _NEEDS[step["need"]]:
        parts.append(_NEEDS[step["need"]])
    if step["approval"]:
        many = plan["approvers"]
        parts.append("after an approval" if many == 1 else f"after {many} approvals")
    return f"  step {number}     {', '.join(parts)}"


def _rule(check: Json) -> str:
    mute = " (reported only)" if check["dry_run"] else ""
    if check["worse_by_at_most"] is None:
        return f"{check['signal']} limit {check['at_most']:g}{mute}"
    floor = f", up to {check['floor']:g} is always fine" if check["floor"] is not None else ""
    fails = check["tolerate"]
    line = f", fails beyond {100 * fails:g}%" if fails is not None else ""
    most = 100 * check["worse_by_at_most"]
    return f"{check['signal']} worse by at most {most:g}%{line}{floor}{mute}"
