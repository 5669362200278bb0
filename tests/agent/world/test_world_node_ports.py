"""Node ports and health check ports: those given, and those given out."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import msgspec
import pytest
from served_worlds import (
    CONFIG,
    NODE,
    SCTP,
    TCP,
    UDP,
    messages,
    port,
    put,
    ref_of,
    remove,
    service,
    shown,
    world_of,
)

from agent.objects import (
    Change,
    Service,
)
from agent.sources.slices import derive
from agent.world.config import ServiceConfig
from agent.world.world import World
from policies.address import parse_address


def test_node_ports_are_given_out_around_those_given_by_hand_and_kept() -> None:
    by_hand = service("hand", *(port(n, node_port=30000 + n) for n in range(1, 9)), kind="NodePort")
    world = world_of(by_hand, service("a", kind="NodePort"), service("b", kind="NodePort"))
    given = {world.services.node_ports(ref_of(name))[TCP, 80] for name in "ab"}
    assert given == {30000, 30009}
    saved = world.allocations.snapshot()
    again = World(CONFIG, derive)
    again.allocations.restore(saved)
    put(again, service("b", kind="NodePort"), service("a", kind="NodePort"), by_hand)
    again.release_unused()
    assert again.allocations.snapshot() == saved
    assert shown(again, "a") == shown(world, "a")


def test_what_is_read_together_is_given_nothing_that_another_one_names() -> None:
    """Though it come first. It needs a node port, a health check port and an address: one of each is left."""
    needs = service("a", kind="LoadBalancer", external_local=True)
    by_hand = [
        service(f"hand{n}", port(80, node_port=30000 + n), ip=f"10.96.0.{n + 2}", kind="NodePort") for n in range(7)
    ]
    checked = service(
        "hand", port(80, node_port=30007), kind="LoadBalancer", external_local=True, health_node_port=30008
    )
    headed = [service(f"ip{n}", ip=f"10.96.0.{n}") for n in range(9, 13)]
    world = World(msgspec.structs.replace(CONFIG, services=ServiceConfig(node_ports=(30000, 30010))), derive)
    world.apply_all([Change(one.ref, one) for one in (needs, *by_hand, *headed, checked)])
    world.take_dirty()
    assert messages(world) == []
    assert {world.services.node_ports(needs.ref)[TCP, 80], world.services.health_port(needs.ref)} == {30009, 30010}
    put(world, service("late", kind="NodePort"))
    assert len(messages(world)) == 1, "nothing is left of either, and nothing stays reserved"
    remove(world, checked.ref)
    assert messages(world) == []


def test_one_number_for_tcp_and_udp_of_one_port() -> None:
    """Lesson 19: and each has a frontend of its own."""
    world = world_of(service("dns", port(53, TCP), port(53, UDP), port(53, SCTP), port(80), kind="NodePort"))
    ports = world.services.node_ports(ref_of("dns"))
    assert ports[TCP, 53] == ports[UDP, 53] == ports[SCTP, 53] != ports[TCP, 80]
    at_node = {entry.partition(":")[2] for entry in shown(world, "dns") if entry.startswith(f"NodePort {NODE}")}
    assert at_node == {f"{ports[TCP, 53]}/6", f"{ports[TCP, 53]}/17", f"{ports[TCP, 53]}/132", f"{ports[TCP, 80]}/6"}
    world = world_of(service("dns", port(53, TCP, 30003), port(53, UDP), kind="NodePort"))
    assert world.services.node_ports(ref_of("dns")) == {(TCP, 53): 30003, (UDP, 53): 30003}


@pytest.mark.parametrize("order", list(permutations(("a", "b", "c"))))
def test_one_node_port_three_services(order: tuple[str, ...]) -> None:
    services = {name: service(name, port(80, node_port=30005), kind="NodePort") for name in "abc"}
    world = world_of(*(services[name] for name in order))
    assert f"NodePort {NODE}:30005/6" in shown(world, "a")
    assert not any("30005" in entry for name in "bc" for entry in shown(world, name))
    assert any(entry.startswith("ClusterIP") for entry in shown(world, "b")), "the rest of it is in force"
    assert messages(world) == [
        f"Service shop/{name}: node port 30005/TCP belongs to Service shop/a: choose another node port, or none"
        for name in "bc"
    ]
    assert ref_of("b") in remove(world, ref_of("a"))
    assert f"NodePort {NODE}:30005/6" in shown(world, "b")
    assert world.services.node_ports(ref_of("c")) == {}


def test_one_number_of_two_protocols_is_no_conflict() -> None:
    world = world_of(
        service("a", port(80, TCP, 30005), kind="NodePort"), service("b", port(80, UDP, 30005), kind="NodePort")
    )
    assert not world.problems()
    assert (f"NodePort {NODE}:30005/6" in shown(world, "a"), f"NodePort {NODE}:30005/17" in shown(world, "b")) == (
        True,
        True,
    )


def test_a_number_given_out_stays_whoever_writes_it_later() -> None:
    world = world_of(service("z", kind="NodePort"))
    number = world.services.node_ports(ref_of("z"))[TCP, 80]
    put(world, service("a", port(80, node_port=number), kind="NodePort"))
    assert world.services.node_ports(ref_of("z")) == {(TCP, 80): number}
    assert world.services.node_ports(ref_of("a")) == {}


def test_a_node_port_out_of_range_is_left_out_and_reported() -> None:
    world = world_of(service("a", port(80, node_port=8080), port(81), kind="NodePort"))
    assert set(world.services.node_ports(ref_of("a"))) == {(TCP, 81)}
    assert messages(world) == [
        "Service shop/a: node port 8080 is not in 30000-30009 (--node-ports): choose another one, or none"
    ]


def test_node_ports_that_run_out_are_given_out_when_there_are_some_again() -> None:
    world = world_of(*(service(f"s{n}", kind="NodePort") for n in range(11)))
    (short,) = [n for n in range(11) if not world.services.node_ports(ref_of(f"s{n}"))]
    assert "no node port is left for shop/s10:80: all 10 are in use" in messages(world)[0]
    assert any(entry.startswith("ClusterIP") for entry in shown(world, f"s{short}"))
    assert ref_of(f"s{short}") in remove(world, ref_of("s0"))
    assert world.services.node_ports(ref_of(f"s{short}"))
    assert not world.problems()


TYPES: list[tuple[Service, set[str]]] = [
    (service("s", ip="10.96.9.9"), {"ClusterIP"}),
    (service("s", ip="10.96.9.9", kind="NodePort"), {"ClusterIP", "NodePort", "Loopback"}),
    (service("s", kind="ExternalName"), set()),
    (
        service("s", ip="10.96.9.9", kind="LoadBalancer", balancer_ips=(parse_address("203.0.113.1"),)),
        {"ClusterIP", "NodePort", "Loopback", "LoadBalancer"},
    ),
    (service("s", ip="10.96.9.9", kind="LoadBalancer", allocates_node_ports=False), {"ClusterIP"}),
    (
        service("s", port(80, node_port=30004), ip="10.96.9.9", kind="LoadBalancer", allocates_node_ports=False),
        {"ClusterIP", "NodePort", "Loopback"},
    ),
    (
        service("s", ip="10.96.9.9", external_ips=(parse_address("203.0.113.7"),)),
        {"ClusterIP", "ExternalIP"},
    ),
    (service("s", headless=True), set()),
    (service("s", ip="10.96.9.9", kind="NodePort", proxied=False), set()),
]


@pytest.mark.parametrize(("before", "after"), list(permutations(range(len(TYPES)), 2)))
def test_type_changes(before: int, after: int) -> None:
    """ExternalName, ClusterIP, NodePort, LoadBalancer, headless: what one needs is taken, what it does not is freed."""
    world = world_of(TYPES[before][0])
    put(world, TYPES[after][0])
    assert {entry.partition(" ")[0] for entry in shown(world, "s")} == TYPES[after][1]
    assert world.allocations.snapshot() == world_of(TYPES[after][0]).allocations.snapshot()
    remove(world, ref_of("s"))
    assert world.allocations.snapshot() == World(CONFIG).allocations.snapshot()


HEALTH: list[tuple[dict[str, Any], bool]] = [
    ({"kind": "LoadBalancer", "external_local": True}, True),
    ({"kind": "LoadBalancer", "external_local": True, "health_node_port": 30004}, True),
    ({"kind": "LoadBalancer", "external_local": True, "health_node_port": 8080}, False),
    ({"kind": "LoadBalancer"}, False),
    ({"kind": "NodePort", "external_local": True}, False),
]


@pytest.mark.parametrize(("fields", "has"), HEALTH)
def test_health_ports(fields: dict[str, Any], has: bool) -> None:
    world = world_of(service("s", **fields))
    number = world.services.health_port(ref_of("s"))
    assert (number in range(30000, 30010)) is has
    assert number == fields.get("health_node_port", number) or not has
    assert bool(world.problems()) is (fields.get("health_node_port") == 8080)
    if has:
        put(world, service("t", port(80, node_port=number), kind="NodePort"))
        assert len(messages(world)) == 1
        assert f"node port {number}/TCP belongs to Service shop/s" in messages(world)[0]
