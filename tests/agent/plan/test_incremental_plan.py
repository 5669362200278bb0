"""The plan kept up to date is the plan from scratch, and every transition ends at it."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from map_model import MapModel
from planned import compile_dirty
from served_clusters import histories as served
from worlds import CONFIGS, EVERY_KIND, Scene, built, change_world, histories

from agent.plan.plan import Plan
from agent.plan.state import State
from agent.plan.transition import reconcile
from agent.sources.slices import derive
from agent.world.config import NodeConfig
from agent.world.world import World

EXAMPLES = int(os.environ.get("GATEHOUSE_EXAMPLES", "30"))


@given(scenes=histories(kinds=EVERY_KIND) | served(steps=3), config=st.sampled_from(CONFIGS))
@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
def test_incremental_plan_is_the_plan_from_scratch(scenes: list[Scene], config: NodeConfig) -> None:
    world, plan, maps = World(config, derive), Plan(), MapModel()
    before: Scene | None = None
    for scene in scenes:
        change_world(world, before, scene)
        maps.apply(compile_dirty(world, plan))
        before = scene
        wanted = plan.state.maps()
        assert maps.maps == wanted
        assert built(scene, config, world.allocations.snapshot()).state.maps() == wanted
        assert_counts_are_right(plan)
    assert not compile_dirty(world, plan), "nothing has changed"


def assert_counts_are_right(plan: Plan) -> None:
    read = State.read(plan.state.maps())
    for name in ("classes", "subjects", "blocks"):
        assert getattr(plan.state.uses, name) == getattr(read.uses, name)
    for name, held in plan.state.blocks.items():
        blocks = {number: block for number, block in held.items() if block.size}  # a row may be empty: a deny
        assert blocks.keys() == read.blocks[name].keys()
        assert all(block.same(read.blocks[name][number]) for number, block in blocks.items())
    assert not list(plan.state.strays())


@given(scenes=histories(steps=2, batch=8, kinds=EVERY_KIND) | served(steps=2), data=st.data())
@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
def test_reconcile_ends_at_the_plan_from_any_state(scenes: list[Scene], data: st.DataObject) -> None:
    """After a restart: the maps hold an older plan, of which any part may be missing, and blocks half written."""
    kernel = built(scenes[0]).state.maps()
    for name, entries in kernel.items():
        lost = data.draw(st.sets(st.sampled_from(sorted(entries)), max_size=8), label=name) if entries else set()
        for key in lost:
            del entries[key]
    wanted = built(scenes[-1])
    maps = MapModel(kernel)
    transition = reconcile(State.read(kernel), wanted.state, wanted.names)
    maps.apply(transition)
    assert maps.maps == wanted.state.maps()
    assert not reconcile(State.read(maps.maps), wanted.state, wanted.names), "what is there is not written again"
