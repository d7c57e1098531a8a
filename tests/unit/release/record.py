"""Writes tests/histories/<name>.json for stories that have none yet."""

from __future__ import annotations

import json
from collections.abc import Callable

from .test_crashes import promoted, reverted, rolled_back_by_a_person
from .world import HISTORIES, MODEL, World


def approved(world: World) -> None:
    world.serve(1)
    name = world.open(2, approve={"before": [100]})
    world.traffic(400)
    world.commands.approve(name, actor="bob", reason="numbers are good")
    world.traffic(100)
    world.commands.rollback(MODEL, "local", actor="eve", reason="regret")
    world.ticks(3)


def under_way(world: World) -> None:
    world.serve(1)
    world.open(2)
    world.traffic(150)


STORIES: dict[str, Callable[[World], None]] = {
    "0.1-promoted": promoted,
    "0.1-reverted": reverted,
    "0.1-person": rolled_back_by_a_person,
    "0.1-approved-then-rolled-back": approved,
    "0.1-under-way": under_way,
}


def main() -> None:
    for name, story in STORIES.items():
        path = HISTORIES / f"{name}.json"
        if path.exists():
            continue
        world = World(start_s=2 if name in ("0.1-promoted", "0.1-reverted", "0.1-person") else 0)
        story(world)
        book = world.engine.book()
        rows = [
            {"position": r.position, "stream": r.stream, "version": r.version, "at": r.at,
             "actor": r.actor, "kind": r.kind, "body": json.loads(r.body)}
            for r in world.ledger.rows() if r.stream.startswith("release/")
        ]  # fmt: skip
        told = {
            "events": rows,
            "phases": {name: release.phase for name, release in book.releases.items()},
            "lines": {n: [s.version.number for s in r.line] for n, r in book.routes.items()},
        }
        path.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
