"""A World with its plan, in one call each."""

from __future__ import annotations

from agent.plan.plan import Plan
from agent.plan.step import Transition
from agent.plan.tracing import WorldView
from agent.services.trace import Packet, Trace, trace
from agent.world.world import World


def compile_dirty(world: World, plan: Plan) -> Transition:
    """Compile what changed since the last call; the plan is brought up to date."""
    return plan.advance(plan.update(world, world.take_dirty()))


def trace_in(world: World, packet: Packet) -> Trace:
    """Where this node would take a new flow."""
    return trace(WorldView(world), packet)
