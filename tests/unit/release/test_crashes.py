"""The engine dies at every call of every port, once each; the release ends as it would have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lockgate.fleet.api import ReplicaSpec

from .world import MODEL, ROUTE, World


class Killed(BaseException):
    """The process is gone; nothing catches this."""


class Fuse:
    """Counts calls of all ports; burns at one of them, before or after the call took effect."""

    def __init__(self, at: int, *, after: bool) -> None:
        self.at = at
        self.after = after
        self.count = 0

    def wire(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            if self.count == self.at and not self.after:
                raise Killed
            result = real(*args, **kwargs)
            if self.count == self.at:
                raise Killed
            return result

        return call


PORTS = {
    "ledger": ("append",),
    "gateway": ("set_pool", "set_route", "remove_pool"),
}


def run(story: Callable[[World], None], fuse: Fuse) -> World:
    """Runs `story` with an engine that dies when the fuse burns and is replaced by a new one."""
    world = World(start_s=2)
    for attribute, names in PORTS.items():
        port = getattr(world, attribute)
        for name in names:
            setattr(port, name, fuse.wire(getattr(port, name)))
    world.fleet.set_replicas = _only_changes(world, fuse)  # type: ignore[method-assign]
    lives = 1
    real = world.engine.tick

    def tick() -> bool:
        nonlocal real, lives
        try:
            return real()
        except Killed:
            lives += 1
            world.engine = world.new_engine(f"life {lives}")
            real = world.engine.tick
            world.engine.tick = tick  # type: ignore[method-assign]
            world.clock.sleep(16)  # the dead one's lease has to expire
            return tick()

    world.engine.tick = tick  # type: ignore[method-assign]
    while True:
        try:
            story(world)
        except Killed:  # a person's command died: the person asks again
            continue
        return world


def _only_changes(world: World, fuse: Fuse) -> Callable[[ReplicaSpec], None]:
    """Wires `set_replicas`, which every tick repeats, where it is about to change something."""
    real = world.fleet.set_replicas
    wired = fuse.wire(real)

    def set_replicas(spec: ReplicaSpec) -> None:
        have = sum(r.version == spec.version for r in world.fleet.replicas())
        (real if have == spec.count else wired)(spec)

    return set_replicas


def ask(world: World, verb: Callable[[], object], done: Callable[[], bool]) -> None:
    """A person gives a command until it has taken effect."""
    if not done():
        verb()


def promoted(world: World) -> None:
    ask(world, lambda: world.open(1), lambda: ROUTE in world.engine.book().routes)
    world.ticks(5)
    ask(world, lambda: world.open(2), lambda: "rel-2" in world.engine.book().releases)
    world.traffic(420)
    world.ticks(340)


def reverted(world: World) -> None:
    ask(world, lambda: world.open(1), lambda: ROUTE in world.engine.book().routes)
    world.ticks(5)
    ask(world, lambda: world.open(2), lambda: "rel-2" in world.engine.book().releases)
    world.traffic(90, bad={2: "errors"})


def rolled_back_by_a_person(world: World) -> None:
    ask(world, lambda: world.open(1), lambda: ROUTE in world.engine.book().routes)
    world.ticks(5)
    ask(world, lambda: world.open(2), lambda: "rel-2" in world.engine.book().releases)
    world.ticks(20)
    ask(
        world,
        lambda: world.commands.rollback(MODEL, "local", actor="bob", reason="x"),
        lambda: world.release("rel-2").phase in ("reverting", "reverted"),
    )
    world.ticks(10)


def moved_by(strategy: dict[str, Any], checks: bool = True) -> Callable[[World], None]:
    """A story: version 2 replaces version 1 by `strategy`, three replicas each."""
    asked = {"bake": "3s", "min_requests": 10, "give_up_after": "1h", **strategy}
    rules = [{"signal": "error_rate", "worse_by_at_most": "100%", "floor": "10%"}]

    def story(world: World) -> None:
        ask(world, lambda: world.open(1, replicas=3), lambda: ROUTE in world.engine.book().routes)
        world.ticks(5)
        ask(
            world,
            lambda: world.open(2, strategy=asked, checks=rules if checks else [],
                               keep_previous="0s"),
            lambda: "rel-2" in world.engine.book().releases,
        )  # fmt: skip
        for _ in range(200):
            world.traffic(1, rate=30)
            if world.release("rel-2").final:
                break
        world.ticks(80)

    return story


def opened(world: World, number: int) -> bool:
    return any(r.plan.candidate.number == number for r in world.engine.book().releases.values())


def superseded(world: World) -> None:
    ask(world, lambda: world.open(1), lambda: ROUTE in world.engine.book().routes)
    world.ticks(5)
    ask(world, lambda: world.open(2), lambda: "rel-2" in world.engine.book().releases)
    world.traffic(10)
    ask(world, lambda: world.open(3, supersede=True, checks=[]), lambda: opened(world, 3))
    world.traffic(300)
    world.ticks(340)


ROLLING = {"rolling": {"batch": 1, "surge": 1}}
IN_PLACE = {"rolling": {"batch": 1, "surge": 0}}
WAVERS = ("Judged", "ReleaseHeld", "ReleaseResumed")
"""What depends on when somebody looked."""
STORIES = {
    "rolling": (moved_by(ROLLING), {2: 100}, {2}),
    "in_place": (moved_by(IN_PLACE), {2: 100}, {2}),
    "shadow": (moved_by({"shadow": {"share": 50, "last": "3s", "min_requests": 5}}), {2: 100}, {2}),
    "ab": (
        moved_by({"ab": {"share": 50, "last": "5s", "header": "x-in", "value": "1"}}),
        {2: 100},
        {2},
    ),
    "blue_green": (moved_by({"blue-green": True}, checks=False), {2: 100}, {2}),
    "superseded": (superseded, {3: 100}, {3}),
    "promoted": (promoted, {2: 100}, {2}),
    "reverted": (reverted, {1: 100}, {1}),
    "rolled_back_by_a_person": (rolled_back_by_a_person, {1: 100}, {1}),
}


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", sorted(STORIES))
def test_a_kill_at_any_call_changes_nothing_in_the_end(name: str, after: bool) -> None:
    story, split, running = STORIES[name]
    calm = Fuse(0, after=after)
    world = run(story, calm)
    expected = [kind for kind in world.story("rel-2") if kind not in WAVERS]
    assert (world.split(), world.running()) == (split, running)
    assert calm.count > 10
    for at in range(1, calm.count + 1):
        world = run(story, Fuse(at, after=after))
        assert (world.split(), world.running()) == (split, running), f"killed at call {at}"
        told = [kind for kind in world.story("rel-2") if kind not in WAVERS]
        assert told == expected, f"killed at call {at}"
