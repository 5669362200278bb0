"""What was written but is not in force, put so that its author can act."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from agent.objects import Pod, Problem, Service
from policies.address import format_address
from policies.model import ObjectRef, Protocol

if TYPE_CHECKING:
    from agent.world.world import World


def describe_problems(world: World, failures: Mapping[ObjectRef, str]) -> list[Problem]:
    """Sorted by file and line. `failures`: what else is known to be wrong with an object."""
    found: list[Problem] = []
    for ref, message in failures.items():
        found += _problem(world, ref, message)
    for address, loser, winner in world.addresses.lost():
        taken = f"{winner}" if winner else f"node {world.config.name}"
        found += _problem(world, loser, f"address {format_address(address)} belongs to {taken}: give it another one")
    for service, address, protocol, port, winner in world.services.lost():
        frontend = f"{format_address(address)} port {port}/{Protocol.BY_NUMBER[protocol]}"
        found += _problem(world, service.ref, f"{frontend} belongs to {winner}: choose another clusterIP or port")
    for service in world.services:
        for family in world.services.missing_families(service):
            message = f"there is no {family} service CIDR to allocate from: set --service-cidrs or remove the family"
            found += _problem(world, service.ref, message)
    return sorted(found)


def _problem(world: World, ref: ObjectRef, message: str) -> list[Problem]:
    written: Pod | Service | None = None
    if ref.kind == "Pod":
        state = world.pods.get(ref)
        written = state.pod if state else None
    elif ref.kind == "Service":
        written = world.services.get(ref)
    if written is None:
        return []
    return [Problem(written.origin.file, written.origin.line, message, subject=str(ref))]
