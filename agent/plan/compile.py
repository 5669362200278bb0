"""The whole way at once: what is dirty in the World, compiled into the plan, and how to bring the maps there."""

from __future__ import annotations

from agent.plan.plan import Plan
from agent.plan.step import Transition
from agent.world.world import World


def compile_dirty(world: World, plan: Plan) -> Transition:
    """Compile what changed since the last call; the plan is brought up to date."""
    return plan.advance(plan.update(world, world.take_dirty()))
