"""The only impure part of the engine: one decided action → one call of a port."""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from lockgate.fleet.api import Fleet
from lockgate.gateway.api import Gateway
from lockgate.release.converge import Action, RemovePool, SetPool, SetReplicas, SetWeights


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """What the engine acts on."""

    fleet: Fleet
    gateway: Gateway


def act(action: Action, ports: Ports) -> None:
    """Does `action`; raises what the port raises."""
    match action:
        case SetReplicas(spec=spec):
            ports.fleet.set_replicas(spec)
        case SetPool(route=route, version=version, endpoints=endpoints):
            ports.gateway.set_pool(route, version, endpoints)
        case SetWeights(spec=split):
            ports.gateway.set_route(split)
        case RemovePool(route=route, version=version):
            ports.gateway.remove_pool(route, version)
        case _:
            assert_never(action)


def describe(action: Action) -> str:
    """Returns `set the split of acme/chat@local`, for messages."""
    match action:
        case SetReplicas(spec=spec):
            return f"set {spec.count} replicas of {spec.version[:19]} on {spec.route}"
        case SetPool(route=route, version=version):
            return f"set the pool of {version[:19]} on {route}"
        case SetWeights(spec=split):
            return f"set the split of {split.name}"
        case RemovePool(route=route, version=version):
            return f"remove the pool of {version[:19]} on {route}"
        case _:
            assert_never(action)
