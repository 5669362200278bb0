"""Whatever the maps hold while services change, a flow gets what the old or the new plan says, and nothing else."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from map_model import MapModel
from planned import compile_dirty
from served_clusters import histories as served
from worlds import ABOUT_SERVICES, CONFIGS, Scene, built, change_world, histories

from agent.datapath import abi
from agent.plan.parts import SERVICE_KEY
from agent.plan.plan import Plan
from agent.plan.state import SERVICES, State
from agent.plan.transition import reconcile
from agent.services.trace import Packet
from agent.sources.slices import derive
from agent.world.config import NodeConfig
from agent.world.world import World
from policies.address import is_v4, parse_address

EXAMPLES = int(os.environ.get("GATEHOUSE_EXAMPLES", "20"))
CLIENTS = tuple(parse_address(text) for text in ("203.0.113.9", "10.1.0.1", "2001:db8::9"))

Served = frozenset[tuple[bytes, int]] | str | None
Asked = tuple[Packet, bool, bool]
"""A packet, whether its client is inside the cluster, whether it is the node."""


def asked(*maps: MapModel) -> list[Asked]:
    keys = {key for one in maps for key in one.maps[SERVICES]}
    out = []
    for key in sorted(keys):
        fields = SERVICE_KEY.unpack(key)
        for client in (one for one in CLIENTS if is_v4(one) is is_v4(fields.address)):
            packet = Packet(client, fields.address, abi.be16(fields.port_be), fields.protocol)
            out += [(packet, inside, False) for inside in (True, False)]
        out.append((packet, True, True))
    return out


def answers(maps: MapModel, questions: list[Asked]) -> list[Served]:
    return [maps.serves(*question) for question in questions]


@given(scenes=histories(steps=6, batch=6, kinds=ABOUT_SERVICES) | served(steps=3), config=st.sampled_from(CONFIGS))
@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
def test_on_the_way_it_is_as_before_or_as_after(scenes: list[Scene], config: NodeConfig) -> None:
    world, plan, maps = World(config, derive), Plan(), MapModel()
    before: Scene | None = None
    for scene in scenes:
        change_world(world, before, scene)
        before = scene
        old = MapModel(maps.maps)
        transition = compile_dirty(world, plan)
        new = MapModel(plan.state.maps())
        questions = asked(old, new)
        held, wanted = answers(old, questions), answers(new, questions)
        for _ in maps.writes((*transition.steps, *transition.cleanup)):
            for now, one, other in zip(answers(maps, questions), held, wanted, strict=True):
                assert now in (one, other)
        assert answers(maps, questions) == wanted


@given(scenes=served(steps=2), config=st.sampled_from(CONFIGS))
@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
def test_after_a_kill_at_any_write_the_rest_is_made_up_for(scenes: list[Scene], config: NodeConfig) -> None:
    """Of a start from an older plan, and of a change."""
    wanted = built(scenes[2], config)
    for before in (scenes[0], scenes[1]):
        maps = MapModel(built(before, config).state.maps())
        way = reconcile(State.read(maps.maps), wanted.state, wanted.names)
        for _ in maps.writes((*way.steps, *way.cleanup)):
            left = MapModel(maps.maps)
            left.apply(reconcile(State.read(left.maps), wanted.state, wanted.names))
            assert left.maps == wanted.state.maps()
    assert not reconcile(State.read(maps.maps), wanted.state, wanted.names)
