"""Pods' network namespaces, by which the socket hooks know whose a socket is."""

from __future__ import annotations

import msgspec
from planned import compile_dirty
from worlds import ORIGIN

from agent.datapath import abi
from agent.objects import Change, Interface, Pod
from agent.plan.plan import Plan
from agent.plan.state import INTERFACES, NAMESPACES
from agent.world.config import NodeConfig
from agent.world.world import World
from policies.address import Prefix, parse_address
from policies.model import ObjectRef

ADDRESS = parse_address("10.1.0.5")
POD = Pod(ObjectRef("Pod", "shop", "web"), ORIGIN, {}, addresses=(ADDRESS,))
LINK = Interface(7, "gh7", bytes(6), bytes(6), "", 4007)
KEY = (4007).to_bytes(8, "little")


def test_a_pods_namespace_is_known_as_long_as_its_interface() -> None:
    world, plan = World(NodeConfig("n1", (Prefix.parse("10.1.0.0/24"),))), Plan()
    world.apply(Change(POD.ref, POD))
    world.set_interface(POD.ref, msgspec.structs.replace(LINK, netns_cookie=0))
    compile_dirty(world, plan)
    assert not plan.state.tables[NAMESPACES], "a cookie of 0 is not known"

    world.set_interface(POD.ref, LINK)
    steps = compile_dirty(world, plan).steps
    assert [step.map for step in steps] == [NAMESPACES]
    fields = abi.load().records["netns"].unpack(plan.state.tables[NAMESPACES][KEY])
    assert (fields.ipv4, fields.ipv6, fields.ifindex) == (ADDRESS, bytes(16), 7)

    world.set_interface(POD.ref, None)
    gone = compile_dirty(world, plan)
    order = [step.map for step in gone.steps if step.deletes]
    assert order[0] == NAMESPACES and INTERFACES in order, "sockets are left alone before the pod goes"
    assert not plan.state.tables[NAMESPACES]
