"""Networks that a runtime made for pods of this node."""

from __future__ import annotations

import pytest
from cluster_worlds import (
    attach,
    key_of,
    number,
    pod,
    pod_ref,
    put,
    remove,
    seen,
    world_of,
)

from agent.identity.labels import key_digest
from agent.objects import (
    DeclaredPort,
    Interface,
    NodeEndpoint,
)
from policies.address import parse_address


def test_only_what_was_attached_counts() -> None:
    world = world_of(number(300), pod("a", "10.1.0.99"))
    assert (seen(world, "10.1.0.99"), world.allocations.snapshot()["pods 10.1.0.0/24"]) == (None, {})
    attach(world, "a", "10.1.0.5")
    assert (seen(world, "10.1.0.99"), seen(world, "10.1.0.5")) == (None, 300)
    put(world, pod("a", "10.1.0.99", app="x"))
    assert world.own_addresses(pod_ref("a")) == (parse_address("10.1.0.5"),)
    world.detach(pod_ref("a"))
    world.take_dirty()
    assert (seen(world, "10.1.0.5"), world.subject(pod_ref("a"))) == (None, None)
    assert world.local_endpoints() == ()


def test_a_pod_in_the_host_s_network_has_the_node_s_addresses_alone() -> None:
    world = world_of(pod("a", "192.0.2.1", "10.1.0.77", host_network=True))
    assert [seen(world, a) for a in ("192.0.2.1", "10.1.0.77")] == [1, None]


def test_a_network_waits_for_its_pod_and_outlives_it() -> None:
    world = world_of(number(300))
    attach(world, "a", "10.1.0.5")
    assert (seen(world, "10.1.0.5"), world.local_endpoints()) == (None, ())
    put(world, pod("a"))
    assert seen(world, "10.1.0.5") == 300
    assert world.subject(pod_ref("a")) is not None
    remove(world, pod_ref("a"))
    assert (seen(world, "10.1.0.5"), world.subject(pod_ref("a"))) == (None, None), "nobody's, in the pods' block"
    put(world, pod("a"))
    assert world.subject(pod_ref("a")) is not None


def test_an_interface_may_come_by_itself() -> None:
    world = world_of(number(300))
    link = Interface(9, "v", bytes(6), bytes(6), "")
    with pytest.raises(KeyError):
        world.set_interface(pod_ref("a"), link)
    world.attach(pod_ref("a"), (parse_address("10.1.0.5"),))
    world.set_interface(pod_ref("a"), link)
    put(world, pod("a"))
    assert world.subject(pod_ref("a")) is not None
    world.attach(pod_ref("a"), (parse_address("10.1.0.6"),))
    world.take_dirty()
    assert world.subject(pod_ref("a")) is None, "another network, of which nobody knows where it is"


def test_what_others_are_told() -> None:
    world = world_of(number(300, app="web"), pod("b", app="web"), pod("a", app="web"), pod("c", app="db"))
    for name, address in (("b", "10.1.0.6"), ("a", "10.1.0.5"), ("c", "10.1.0.7")):
        attach(world, name, address)
    put(world, pod("node", "192.0.2.1", host_network=True))
    digest, ports = key_digest(key_of(app="web")), (DeclaredPort("http", 6, 8080),)
    assert world.local_endpoints() == (
        NodeEndpoint(pod_ref("a"), (parse_address("10.1.0.5"),), 300, digest, ports),
        NodeEndpoint(pod_ref("b"), (parse_address("10.1.0.6"),), 300, digest, ports),
    )
