"""Frontends kept up to date are those from scratch, and whatever changes is said to be dirty."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import Cluster
from worlds import ABOUT_SERVICES, CONFIGS, Scene, change_world, histories

from agent.services.model import Frontend
from agent.sources.slices import derive
from agent.world.config import NodeConfig
from agent.world.world import World
from policies.model import ObjectRef

EXAMPLES = int(os.environ.get("GATEHOUSE_EXAMPLES", "60"))


def facts(world: World, ref: ObjectRef) -> tuple[tuple[Frontend, ...], int]:
    return world.frontends(ref), world.services.health_port(ref)


@given(scenes=histories(steps=12, kinds=ABOUT_SERVICES), config=st.sampled_from(CONFIGS))
@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
def test_incremental_frontends_are_those_from_scratch(scenes: list[Scene], config: NodeConfig) -> None:
    world = World(config, derive)
    known: dict[ObjectRef, tuple[tuple[Frontend, ...], int]] = {}
    before: Scene | None = None
    for scene in scenes:
        change_world(world, before, scene)
        for ref in world.take_dirty().services:
            known[ref] = facts(world, ref)
        before = scene
        fresh = World(config, derive)
        fresh.allocations.restore(world.allocations.snapshot())
        change_world(fresh, None, scene)
        dirty = fresh.take_dirty()
        served = set(world.served())
        assert set(fresh.served()) == served <= dirty.services
        fresh.release_unused()
        assert fresh.allocations.snapshot() == world.allocations.snapshot()
        for ref in known.keys() | served:
            assert known[ref] == facts(world, ref) == facts(fresh, ref)
        assert fresh.problems() == world.problems()
        keys = [(f.address, f.protocol, f.port) for ref in served for f in known[ref][0]]
        assert len(keys) == len(set(keys)), "no two services have one frontend"


@given(scenes=histories(steps=1, batch=12, kinds=ABOUT_SERVICES), config=st.sampled_from(CONFIGS))
@settings(max_examples=EXAMPLES // 2, suppress_health_check=list(HealthCheck))
def test_what_goes_leaves_nothing(scenes: list[Scene], config: NodeConfig) -> None:
    world = World(config, derive)
    empty = world.allocations.snapshot()
    change_world(world, None, scenes[-1])
    world.take_dirty()
    change_world(world, scenes[-1], Scene(Cluster({}, (), ())))
    world.take_dirty()
    assert world.allocations.snapshot() == empty
    assert list(world.served()) == []
    assert world.problems() == []
