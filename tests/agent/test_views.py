"""What people are shown of the nodes."""

from __future__ import annotations

from unittest.mock import Mock

import msgspec
from worlds import CONFIG, ORIGIN

from agent.objects import Change, Node, Object, Pod
from agent.views import Views
from agent.world.config import NodeConfig
from agent.world.world import World
from policies.address import Prefix, parse_address
from policies.model import ObjectRef

THERE = Node(
    ObjectRef("Node", "", "there"),
    ORIGIN,
    (parse_address("192.0.2.7"), parse_address("2001:db8::7")),
    (Prefix.parse("10.3.0.0/24"),),
    "z2",
)


def nodes(*objects: Object, config: NodeConfig = CONFIG) -> list[tuple[object, ...]]:
    world = World(config)
    for one in objects:
        world.apply(Change(one.ref, one))
    shown = Views(world, Mock(), Mock()).nodes()
    return [(n.name, n.local, n.addresses, n.pod_cidrs, n.zone, n.pods) for n in shown]


def pod(name: str, node: str) -> Pod:
    return Pod(ObjectRef("Pod", "shop", name), ORIGIN, {}, node=node, addresses=(parse_address("10.3.0.1"),))


def test_nodes_that_manifests_tell_of_and_those_that_pods_are_on() -> None:
    here, *others = nodes(pod("a", ""), pod("b", "there"), pod("c", "far"), pod("d", "far"), THERE)
    assert here[:2] + here[3:] == ("here", True, ("10.1.0.0/22", "fd00:1::/96"), "z1", 1)
    assert others == [
        ("far", False, (), (), "", 2),
        ("there", False, ("192.0.2.7", "2001:db8::7"), ("10.3.0.0/24",), "z2", 1),
    ]


def test_of_its_own_manifest_a_node_takes_the_zone_alone() -> None:
    manifest = msgspec.structs.replace(THERE, ref=ObjectRef("Node", "", "here"))
    (here,) = nodes(manifest, config=msgspec.structs.replace(CONFIG, zone="", addresses=(parse_address("192.0.2.1"),)))
    assert here == ("here", True, ("192.0.2.1",), ("10.1.0.0/22", "fd00:1::/96"), "z2", 0)
