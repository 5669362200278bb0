"""Worlds of a few objects, changed one by one."""

from __future__ import annotations

from agent.objects import Change, Interface, Object, Pod
from agent.world.dirty import Dirty
from agent.world.world import World
from policies.model import ObjectRef


def put(world: World, *objects: Object) -> Dirty:
    """These are now thus, and pods of this node have their networks."""
    for one in objects:
        world.apply(Change(one.ref, one))
        if isinstance(one, Pod) and world.is_local(one.ref):
            world.set_interface(one.ref, Interface(1 + len(one.ref.name), "v", bytes(6), bytes(6), ""))
    return world.take_dirty()


def remove(world: World, *refs: ObjectRef) -> Dirty:
    for ref in refs:
        world.apply(Change(ref, None))
    return world.take_dirty()
