"""What an agent would install for a World, without its pods' networks being there."""

from __future__ import annotations

from agent.objects import Interface
from agent.plan.plan import Plan
from agent.world.world import World

NO_MAC = bytes(6)


def preview(world: World) -> Plan:
    """The plan with every local pod in place, on interfaces that are numbered by name, from 1."""
    local = sorted(state.pod.ref for state in world.pods if world.is_local(state.pod.ref))
    for number, ref in enumerate(local, start=1):
        world.set_interface(ref, Interface(number, "", NO_MAC, NO_MAC, ""))
    plan = Plan()
    plan.advance(plan.update(world, world.take_dirty()))
    return plan
