"""Whose addresses are whose in a cluster: blocks of nodes, and pods in them."""

from __future__ import annotations

import msgspec
from cluster_worlds import (
    CONFIG,
    REMOTE_NODE,
    UNMANAGED,
    endpoint,
    identity,
    key_of,
    messages,
    node,
    node_ref,
    number,
    pod,
    put,
    remove,
    seen,
    told,
    world_of,
)

from agent.world.nodes import Peer
from agent.world.world import World
from policies.address import Prefix, parse_address
from policies.model import (
    ObjectRef,
)


def test_a_pod_has_no_address_out_of_another_node_s_block() -> None:
    world = world_of(
        number(300),
        node("n1", "10.1.1.0/24"),
        node("n2", "10.1.2.0/24"),
        told("n1", endpoint("a", 300, "10.1.2.5"), endpoint("b", 300, "10.1.0.6"), endpoint("c", 300, "192.0.2.99")),
        told("n3", endpoint("d", 300, "10.1.1.7"), endpoint("e", 300, "198.51.100.7")),
    )
    assert [seen(world, a) for a in ("10.1.2.5", "10.1.0.6", "192.0.2.99", "10.1.1.7")] == [None] * 4
    assert seen(world, "198.51.100.7") == 300, "of n3 no block is known"
    assert seen_block(world, "10.1.2.0/24") == UNMANAGED
    assert messages(world) == [
        "NodeEndpoints n1: pod shop/a has address 10.1.2.5, which is in a block of node n2: it is not taken",
        "NodeEndpoints n1: pod shop/b has address 10.1.0.6, which is in a block of node here: it is not taken",
        "NodeEndpoints n1: pod shop/c has address 192.0.2.99, which is in no block of its node: it is not taken",
        "NodeEndpoints n3: pod shop/d has address 10.1.1.7, which is in a block of node n1: it is not taken",
    ]
    put(world, node("n1", "192.0.2.64/26"), node("n2"))
    assert [seen(world, a) for a in ("10.1.2.5", "192.0.2.99", "10.1.1.7")] == [None, 300, 300]


def seen_block(world: World, block: str) -> int | None:
    found = world.addresses.remote_class(Prefix.parse(block))
    return found.identity if found else None


def test_addresses_in_pods_blocks_that_nobody_told_of_are_unmanaged() -> None:
    world = world_of(told("there", blocks=["10.1.1.0/24"]))
    assert seen_block(world, "10.1.1.0/24") == UNMANAGED
    remove(world, node_ref("there"))
    assert seen_block(world, "10.1.1.0/24") is None


def test_a_block_that_overlaps_another_node_s_is_refused() -> None:
    world = world_of(
        number(300),
        told("n2", endpoint("b", 300, "10.1.1.9"), blocks=["10.1.1.0/24"]),
        told("n1", endpoint("a", 300, "10.1.1.5"), blocks=["10.1.0.0/16"]),
    )
    assert (seen(world, "10.1.1.9"), seen(world, "10.1.1.5")) == (300, None)
    assert seen_block(world, "10.1.0.0/16") is None
    assert messages(world) == [
        "NodeEndpoints n1: block 10.1.0.0/16 overlaps one of node here: it is not taken",
        "NodeEndpoints n1: pod shop/a has address 10.1.1.5, which is in a block of node n2: it is not taken",
    ]
    put(world, node("n1", "10.1.1.0/28"))
    assert (seen(world, "10.1.1.9"), seen(world, "10.1.1.5")) == (None, 300), "Node objects go first"
    put(world, node("n1"))
    assert (seen(world, "10.1.1.9"), seen(world, "10.1.1.5")) == (300, None)
    remove(world, node_ref("n2"))
    assert messages(world)[0].startswith("NodeEndpoints n1: block 10.1.0.0/16 overlaps one of node here")
    put(world, told("n1", endpoint("a", 300, "10.1.1.5"), blocks=["10.1.1.0/24"]))
    assert (seen(world, "10.1.1.5"), messages(world)) == (300, [])


def test_whoever_came_first_keeps_its_block() -> None:
    world = world_of(told("n2", blocks=["10.1.1.0/24"]), told("n1", blocks=["10.1.1.0/25"]))
    assert world.nodes.blocks.owner(parse_address("10.1.1.5")) == "n2"
    put(world, told("n2", blocks=["10.1.2.0/24", "10.1.1.0/24"]))
    assert world.nodes.blocks.owner(parse_address("10.1.1.5")) == "n2"
    put(world, told("n2", blocks=["10.1.2.0/24"]))
    assert world.nodes.blocks.owner(parse_address("10.1.1.5")) == "n1"


def test_a_node_does_not_become_another_s_pod() -> None:
    """What a node says are its addresses counts as far as they lie in no other's block."""
    world = world_of(
        number(300),
        told("n2", endpoint("b", 300, "10.1.2.5"), blocks=["10.1.2.0/24"]),
        told("n1", addresses=["10.1.2.5", "192.0.2.9", "10.1.0.7"], blocks=["10.1.1.0/24"]),
    )
    assert [seen(world, a) for a in ("10.1.2.5", "192.0.2.9", "10.1.0.7")] == [300, REMOTE_NODE, None]
    assert messages(world) == [
        "NodeEndpoints n1: address 10.1.0.7 is in a block of node here: it is not taken for this node's",
        "NodeEndpoints n1: address 10.1.2.5 is in a block of node n2: it is not taken for this node's",
    ]
    remove(world, node_ref("n2"))
    assert seen(world, "10.1.2.5") == REMOTE_NODE


def test_peers() -> None:
    world = world_of(
        node("n1", "10.1.1.0/24", addresses=["192.0.2.2"]),
        node("n2", "10.1.2.0/24", addresses=["192.0.2.3"]),
        node("here", "10.1.0.0/24", addresses=["192.0.2.1"]),
        told("here", blocks=["10.1.0.0/24"]),
        told("n1", addresses=["198.51.100.2", "192.0.2.2"], blocks=["10.9.1.0/24"], key=bytes(range(32))),
        told("n3", blocks=["10.1.2.0/25"]),
    )
    assert dict(world.nodes.peers()) == {
        "n1": Peer(
            "n1",
            (parse_address("198.51.100.2"), parse_address("192.0.2.2")),
            (Prefix.parse("10.9.1.0/24"),),
            bytes(range(32)),
        ),
        "n2": Peer("n2", (parse_address("192.0.2.3"),), (Prefix.parse("10.1.2.0/24"),)),
        "n3": Peer("n3", (), ()),
    }
    assert {seen_block(world, b) for b in ("10.1.1.0/24", "10.9.1.0/24", "10.1.0.0/24")} == {UNMANAGED}
    remove(world, ObjectRef("Node", "", "n2"), node_ref("n1"))
    assert world.nodes.peers()["n3"].pod_cidrs == (Prefix.parse("10.1.2.0/25"),)
    assert world.nodes.peers()["n1"] == Peer("n1", (parse_address("192.0.2.2"),), (Prefix.parse("10.1.1.0/24"),))
    assert "n2" not in world.nodes.peers()


def test_a_pool_s_blocks_come_and_go() -> None:
    world = world_of(number(300), told("there", endpoint("a", 300, "10.5.0.5")))
    assert seen(world, "10.5.0.5") == 300, "there has no block: its pods may have any address that is in no other's"
    world.set_pod_blocks((Prefix.parse("10.5.0.0/24"),))
    world.take_dirty()
    assert (seen(world, "10.5.0.5"), seen_block(world, "10.5.0.0/24")) == (None, UNMANAGED)
    assert seen_block(world, "10.1.0.0/24") is None
    world.set_pod_blocks(())
    world.take_dirty()
    assert (seen(world, "10.5.0.5"), seen_block(world, "10.5.0.0/24")) == (300, None)


def test_without_a_cluster_nothing_of_this_counts() -> None:
    config = msgspec.structs.replace(CONFIG, cluster=False, attached=False)
    world = world_of(
        number(300), pod("a"), told("there", endpoint("b", 300, "10.1.1.5"), blocks=["10.1.1.0/24"]), config=config
    )
    assert identity(world, "a") != 0
    assert (seen(world, "10.1.1.5"), seen_block(world, "10.1.1.0/24")) == (None, None)
    assert world.identities.wanted() == {}
    assert world.identities.numbers(key_of()) == (identity(world, "a"),)
