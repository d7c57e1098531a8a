"""The tables of the store's benchmark: printed as they come, and kept to be written as markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A number that was promised, what was measured, and whether less of it is better."""

    what: str
    goal: float
    found: float
    unit: str = ""
    less: bool = True

    @property
    def reached(self) -> bool:
        return self.found <= self.goal if self.less else self.found >= self.goal


@dataclass(slots=True)
class Page:
    """Lines of markdown."""

    lines: list[str] = field(default_factory=list)

    def say(self, text: str = "") -> None:
        print(text, flush=True)
        self.lines.append(text)

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Adds a table, its columns as wide as what is in them."""
        widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
        rule = ["-" * width for width in widths]
        for row in (head, rule, *rows):
            cells = " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            self.say(f"| {cells} |")
        self.say()

    def targets(self, targets: Sequence[Target]) -> None:
        """Adds what was promised beside what was found."""
        rows = [
            (t.what, f"{'≤' if t.less else '≥'} {t.goal:g}{t.unit}", f"{t.found:.3g}{t.unit}",
             "reached" if t.reached else "NOT reached")
            for t in targets
        ]  # fmt: skip
        self.table(("target", "goal", "found", ""), rows)

    def write(self, path: Path) -> None:
        path.write_text("\n".join(self.lines) + "\n")


def percent(part: float, whole: float) -> str:
    """Returns a share with as many digits as it deserves."""
    share = 100 * part / whole
    return f"{share:.3f}" if share < 1 else f"{share:.2f}" if share < 10 else f"{share:.1f}"


def same_files(one: Path, other: Path) -> bool:
    """Says whether two folders have the same files, byte for byte."""
    left = sorted(p.relative_to(one) for p in one.rglob("*") if p.is_file())
    right = sorted(p.relative_to(other) for p in other.rglob("*") if p.is_file())
    return left == right and all(_same(one / name, other / name) for name in left)


def _same(one: Path, other: Path) -> bool:
    with one.open("rb") as left, other.open("rb") as right:
        while block := left.read(1 << 20):
            if right.read(1 << 20) != block:
                return False
        return not right.read(1)
