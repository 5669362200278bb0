"""What people are shown of the nodes, and of policies."""

from __future__ import annotations

from unittest.mock import Mock

import msgspec
from worlds import CONFIG, ORIGIN

from agent.objects import Change, Node, Object, Pod
from agent.sources.manifest import parse
from agent.sources.tree import Tree
from agent.status import PolicyView
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


NETWORK = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: %s}\nspec: %s\n"
CILIUM = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: %s}\nspecs: %s\n"
WIDE = "apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {name: %s}\nspec: %s\n"


def listed(*texts: str) -> dict[str, PolicyView]:
    """Of a tree of one file that had these contents one after another."""
    tree, world = Tree(), World(CONFIG)
    for text in texts:
        tree.put(parse(text.encode(), "m.yaml", tree.manifests.get("m.yaml")))
        world.apply_all(tree.settle())
    return {f"{p.kind} {p.name}": p for p in Views(world, Mock(), Mock()).policies(tree.problems)}


def test_policies_of_every_kind_with_their_status() -> None:
    two = "[{endpointSelector: {}, ingress: [{}]}, {endpointSelector: {}, egress: [{}]}]"
    found = listed(
        "---\n".join(
            [
                NETWORK % ("good", "{podSelector: {}}"),
                CILIUM % ("two", two),
                CILIUM % ("bad", "[{endpointSelector: {}, ingress: [{fromGroups: [{}]}]}]"),
                CILIUM % ("unclear", "[{endpointSelector: 5, ingress: [{}]}]"),
                WIDE % ("nodes", "{nodeSelector: {}, ingress: [{}]}"),
            ]
        )
    )
    assert {name: (p.isolates, p.status) for name, p in found.items()} == {
        "CiliumClusterwideNetworkPolicy nodes": (
            (),
            "not enforced: spec.nodeSelector: policies for nodes are not enforced",
        ),
        "CiliumNetworkPolicy bad": (
            ("ingress",),
            "not enforced: specs[0].ingress[0].fromGroups: is not supported: list the addresses",
        ),
        "CiliumNetworkPolicy two": (("ingress",), "accepted"),
        "CiliumNetworkPolicy two:specs[1]": (("egress",), "accepted"),
        "CiliumNetworkPolicy unclear": (
            (),
            "not enforced: specs[0].endpointSelector: must be an object, not a number",
        ),
        "NetworkPolicy good": (("ingress",), "accepted"),
    }
    assert found["CiliumNetworkPolicy unclear"].origin == "m.yaml:19"


def test_a_policy_that_stays_as_it_was_says_so() -> None:
    found = listed(NETWORK % ("p", "{podSelector: {}}"), NETWORK % ("p", "{podSelector: 5}"))
    assert found["NetworkPolicy p"].status == (
        "not enforced: spec.podSelector: must be an object, not a number (the last good version stays in force)"
    )
