"""In any cluster: what a trace says of a packet is what the plan's entries say."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from map_model import MapModel
from planned import compile_dirty, trace_in
from served_clusters import histories as served
from strategies import HOST_ADDRESSES
from worlds import ABOUT_SERVICES, CONFIGS, Scene, change_world, histories

from agent.datapath import abi
from agent.plan.parts import SERVICE_KEY
from agent.plan.plan import Plan
from agent.plan.state import SERVICES
from agent.plan.tracing import WorldView
from agent.services.trace import INSIDE, SCTP_PORT, Outcome, Packet, Place
from agent.sources.slices import derive
from agent.world.config import NodeConfig
from agent.world.world import World
from policies.address import is_v4, parse_address

EXAMPLES = int(os.environ.get("GATEHOUSE_EXAMPLES", "30"))
CLIENTS = tuple(
    map(parse_address, ("203.0.113.9", "2001:db8::9", "10.1.0.1", "10.1.1.2", "fd00:1::1", *HOST_ADDRESSES))
)


@given(scenes=histories(steps=1, batch=12, kinds=ABOUT_SERVICES) | served(steps=1), config=st.sampled_from(CONFIGS))
@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
def test_trace_says_what_the_entries_say(scenes: list[Scene], config: NodeConfig) -> None:
    world, plan = World(config, derive), Plan()
    change_world(world, None, scenes[-1])
    compile_dirty(world, plan)
    maps, view = MapModel(plan.state.maps()), WorldView(world)
    for key in plan.state.tables[SERVICES]:
        fields = SERVICE_KEY.unpack(key)
        for client in CLIENTS:
            if is_v4(client) is not is_v4(fields.address):
                continue
            packet = Packet(client, fields.address, abi.be16(fields.port_be), fields.protocol)
            trace, place = trace_in(world, packet), view.place(client)
            found = maps.serves(packet, place in INSIDE, place is Place.NODE)
            assert trace.frontend is not None and trace.steps
            if trace.outcome is Outcome.DELIVERED:
                assert isinstance(found, frozenset)
                chosen = {one.backend for one in trace.deliveries}
                assert chosen <= found if trace.frontend.maglev else chosen == found
            elif trace.outcome is not Outcome.NO_SERVICE and trace.reason != SCTP_PORT:
                assert found == (trace.reason or trace.outcome)
