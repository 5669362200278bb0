"""Pods of other nodes, as NodeEndpoints tell of them."""

from __future__ import annotations

import pytest
from cluster_worlds import (
    UNMANAGED,
    attach,
    endpoint,
    messages,
    node_ref,
    number,
    number_ref,
    pod,
    pod_ref,
    put,
    remove,
    seen,
    told,
    world_of,
)
from worlds import ORIGIN

from policies.address import Prefix, parse_address
from policies.model import (
    ContainerPort,
    Direction,
    LabelSelector,
    NamedPort,
    ObjectRef,
    PodSelector,
    Policy,
    Rule,
    RuleRef,
)


def test_a_remote_pod_has_the_identity_its_node_tells() -> None:
    world = world_of(number(300, app="web"), told("there", endpoint("a", 300, "10.1.1.5", app="web")))
    assert seen(world, "10.1.1.5") == 300
    assert world.addresses.owner(parse_address("10.1.1.5")) == pod_ref("a")
    remote = world.addresses.remote(parse_address("10.1.1.5"))
    assert remote is not None
    assert (remote.node, remote.ref) == ("there", pod_ref("a"))
    remove(world, node_ref("there"))
    assert (seen(world, "10.1.1.5"), world.problems(), len(world.remotes)) == (None, [], 0)


@pytest.mark.parametrize("meant", [None, {"app": "db"}])
def test_a_number_that_means_another_thing_here_is_none(meant: dict[str, str] | None) -> None:
    world = world_of(told("there", endpoint("a", 300, "10.1.1.5", app="web")))
    if meant is not None:
        put(world, number(300, **meant))
    assert seen(world, "10.1.1.5") == UNMANAGED
    dirty = put(world, number(300, app="web"))
    assert seen(world, "10.1.1.5") == 300
    assert dirty.prefixes == {Prefix.host(parse_address("10.1.1.5"))}
    put(world, number(300, app="other"))
    assert seen(world, "10.1.1.5") == UNMANAGED
    remove(world, number_ref(300))
    assert seen(world, "10.1.1.5") == UNMANAGED


def test_a_number_local_pods_still_have_is_not_enough_for_others() -> None:
    world = world_of(number(300), pod("a"), told("there", endpoint("b", 300, "10.1.1.5")))
    attach(world, "a", "10.1.0.5")
    assert seen(world, "10.1.1.5") == 300
    remove(world, number_ref(300))
    assert (seen(world, "10.1.0.5"), seen(world, "10.1.1.5")) == (300, UNMANAGED)


def test_a_change_of_one_pod_touches_that_pod() -> None:
    pods = [endpoint(f"p{n}", 300, f"10.1.1.{n}") for n in range(2, 32)]
    world = world_of(number(300), number(301, app="x"), told("there", *pods, blocks=["10.1.1.0/24"]))
    pods[3] = endpoint("p5", 301, "10.1.1.5", app="x")
    assert put(world, told("there", *pods, blocks=["10.1.1.0/24"])).prefixes == {Prefix.parse("10.1.1.5/32")}
    pods[4] = endpoint("p6", 300, "10.1.1.99")
    assert put(world, told("there", *pods, blocks=["10.1.1.0/24"])).prefixes == {
        Prefix.parse("10.1.1.6/32"),
        Prefix.parse("10.1.1.99/32"),
    }
    assert not put(world, told("there", *reversed(pods), blocks=["10.1.1.0/24"]))


def test_pods_may_change_addresses_in_one_step() -> None:
    one, other = endpoint("a", 300, "10.1.1.5"), endpoint("b", 301, "10.1.1.6", app="x")
    world = world_of(number(300), number(301, app="x"), told("there", one, other))
    put(world, told("there", endpoint("a", 300, "10.1.1.6"), endpoint("b", 301, "10.1.1.5", app="x")))
    assert (seen(world, "10.1.1.5"), seen(world, "10.1.1.6"), world.problems()) == (301, 300, [])


def test_its_own_object_tells_a_node_nothing_of_its_pods() -> None:
    world = world_of(number(300), number(301, app="x"), pod("a"))
    attach(world, "a", "10.1.0.5")
    put(world, told("here", endpoint("a", 301, "10.1.0.5", app="x"), endpoint("z", 301, "10.1.0.9", app="x")))
    assert (seen(world, "10.1.0.5"), seen(world, "10.1.0.9")) == (300, None)


def test_a_pod_that_moves_between_nodes_is_known_at_both() -> None:
    """The other way round, too: whoever has the name here does not lend its identity to an address there."""
    world = world_of(number(300), number(301, app="x"), told("n1", endpoint("a", 300, "10.1.1.5")))
    put(world, told("n2", endpoint("a", 301, "10.1.2.5", app="x")))
    assert (seen(world, "10.1.1.5"), seen(world, "10.1.2.5")) == (300, 301)
    put(world, number(302, app="y"), pod("a", app="y"))
    attach(world, "a", "10.1.0.5")
    assert [seen(world, a) for a in ("10.1.0.5", "10.1.1.5", "10.1.2.5")] == [302, 300, 301]
    remove(world, node_ref("n1"), node_ref("n2"))
    assert [seen(world, a) for a in ("10.1.0.5", "10.1.1.5", "10.1.2.5")] == [302, None, None]


def test_nodes_that_tell_of_one_address() -> None:
    """Of no node a block is known: then the first by name has it, until it gives it up."""
    world = world_of(number(300), number(301, app="x"), told("n2", endpoint("b", 301, "10.1.1.5", app="x")))
    put(world, told("n1", endpoint("a", 300, "10.1.1.5")))
    assert seen(world, "10.1.1.5") == 300
    assert messages(world) == ["Pod shop/b: address 10.1.1.5 belongs to Pod shop/a: give it another one"]
    put(world, told("n0", endpoint("a", 301, "10.1.1.5", app="x")))
    assert seen(world, "10.1.1.5") == 301
    remove(world, node_ref("n0"), node_ref("n1"))
    assert (seen(world, "10.1.1.5"), messages(world)) == (301, [])


def test_named_ports_of_remote_pods() -> None:
    world = world_of(number(300), told("there", endpoint("a", 300, "10.1.1.5", port=8080)))
    found = world.addresses.remote_class(Prefix.parse("10.1.1.5/32"))
    assert found is not None
    assert not found.ports
    ref = ObjectRef("NetworkPolicy", "shop", "p")
    rule = Rule(RuleRef(ref, Direction.EGRESS, 0), None, (NamedPort(6, "http"),))
    policy = Policy(ref, ORIGIN, PodSelector(LabelSelector(), "shop"), frozenset({Direction.EGRESS}), (rule,))
    put(world, policy)
    found = world.addresses.remote_class(Prefix.parse("10.1.1.5/32"))
    assert found is not None
    assert found.ports == {ContainerPort("http", 6, 8080)}
