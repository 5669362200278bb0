"""Which service has an address and port, its slices, and hostPorts."""

from __future__ import annotations

from itertools import permutations

import msgspec
import pytest
from served_worlds import (
    CONFIG,
    NODE,
    TCP,
    UDP,
    messages,
    pod,
    port,
    put,
    ref_of,
    remove,
    service,
    shown,
    world_of,
)
from worlds import ORIGIN

from agent.objects import (
    Change,
    EndpointSlice,
    Interface,
    Pod,
    Service,
    SliceEndpoint,
    SlicePort,
)
from agent.services.model import Kind
from agent.sources.slices import derive
from agent.world.config import ServiceConfig
from agent.world.world import World
from policies.address import format_address, parse_address

RIVALS: list[tuple[Service, Service, str]] = [  # winner, loser, of what
    (service("z", ip="10.96.9.1"), service("a", external_ips=(parse_address("10.96.9.1"),)), "10.96.9.1 port 80/TCP"),
    (
        service("z", ip="10.96.9.1"),
        service("a", kind="LoadBalancer", balancer_ips=(parse_address("10.96.9.1"),), allocates_node_ports=False),
        "10.96.9.1 port 80/TCP",
    ),
    (
        service("z", kind="LoadBalancer", balancer_ips=(parse_address("203.0.113.1"),)),
        service("a", external_ips=(parse_address("203.0.113.1"),)),
        "203.0.113.1 port 80/TCP",
    ),
    (
        service("z", port(80, node_port=30003), kind="NodePort"),
        service("a", port(30003), external_ips=(parse_address(NODE),)),
        f"{NODE} port 30003/TCP",
    ),
    (service("a", ip="10.96.9.1"), service("b", ip="10.96.9.1"), "10.96.9.1 port 80/TCP"),
]


@pytest.mark.parametrize(("winner", "loser", "what"), RIVALS)
def test_who_has_the_better_claim(winner: Service, loser: Service, what: str) -> None:
    """CVE-2020-8554: an address its author may choose takes nothing from a cluster address or a node port."""
    first, second = world_of(winner, loser), world_of(loser, winner)
    for world in (first, second):
        assert len(shown(world, winner.ref.name)) == len(shown(world_of(winner), winner.ref.name))
        assert len(shown(world, loser.ref.name)) == len(shown(world_of(loser), loser.ref.name)) - 1
        (message,) = messages(world)
        assert message.startswith(f"Service shop/{loser.ref.name}: {what} belongs to Service shop/{winner.ref.name}: ")
    assert loser.ref in remove(first, winner.ref)
    assert shown(first, loser.ref.name) == shown(world_of(loser), loser.ref.name)


def test_lesson_19_one_address_and_port_two_protocols_two_services() -> None:
    world = world_of(service("a", port(53, UDP), ip="10.96.9.1"), service("b", port(53, TCP), ip="10.96.9.1"))
    assert not world.problems()
    assert shown(world, "a") | shown(world, "b") == {"ClusterIP 10.96.9.1:53/17", "ClusterIP 10.96.9.1:53/6"}


def test_external_ips_are_obeyed_only_where_that_is_allowed() -> None:
    config = msgspec.structs.replace(CONFIG, services=ServiceConfig())
    world = world_of(service("a", ip="10.96.9.1", external_ips=(parse_address("203.0.113.1"),)), config=config)
    assert shown(world, "a") == {"ClusterIP 10.96.9.1:80/6"}
    (problem,) = world.problems()
    assert problem.warning
    assert "set --external-ips" in problem.message


def test_a_node_without_addresses() -> None:
    config = msgspec.structs.replace(CONFIG, addresses=())
    world = world_of(service("a", port(80, node_port=30001), kind="NodePort"), pod("p", (TCP, 8080, "")), config=config)
    assert {entry.partition(" ")[0] for entry in shown(world, "a")} == {"ClusterIP", "Loopback"}
    assert not world.problems()


def endpoints(name: str, owner: str, *addresses: str, proxied: bool = True) -> EndpointSlice:
    members = tuple(SliceEndpoint((parse_address(address),)) for address in addresses)
    return EndpointSlice(ref_of(name, "EndpointSlice"), ORIGIN, owner, (SlicePort("", TCP, 80),), members, proxied)


def test_slices_of_nobody_are_reported() -> None:
    world = world_of(endpoints("e", "missing", "10.9.9.9"), endpoints("f", "", "10.9.9.9"))
    assert [problem.warning for problem in world.problems()] == [True, True]
    assert messages(world) == [
        "EndpointSlice shop/e: no service uses this slice: there is no Service shop/missing",
        "EndpointSlice shop/f: no service uses this slice: it has no label kubernetes.io/service-name",
    ]
    put(world, service("missing", ip="10.96.9.1"))
    assert len(world.problems()) == 1
    (frontend,) = world.frontends(ref_of("missing"))
    assert frontend.inside.backends == ((parse_address("10.9.9.9"), 80),)


def test_a_slice_that_is_anothers_to_serve_is_none() -> None:
    """Also where it was ours before."""
    world = world_of(service("s", ip="10.96.9.1"), endpoints("e", "s", "10.9.9.9"), endpoints("f", "s", "10.9.9.8"))
    assert ref_of("s") in put(world, endpoints("e", "s", "10.9.9.9", proxied=False))
    (frontend,) = world.frontends(ref_of("s"))
    assert frontend.inside.backends == ((parse_address("10.9.9.8"), 80),)


def test_ten_thousand_endpoints() -> None:
    addresses = [f"10.20.{n >> 8}.{n & 255}" for n in range(10_000)]
    slices = [endpoints(f"e{n}", "s", *addresses[n : n + 1000]) for n in range(0, 10_000, 1000)]
    world = world_of(service("s", ip="10.96.9.1"), *slices)
    (frontend,) = world.frontends(ref_of("s"))
    assert len(frontend.inside.backends) == 10_000
    put(world, endpoints("e0", "s", *addresses[1:1000]))
    (frontend,) = world.frontends(ref_of("s"))
    assert len(frontend.inside.backends) == 9_999


def test_a_derived_endpoint_is_on_the_node_its_pod_is_on() -> None:
    local = service("s", ip="10.96.9.1", selector={"app": "web"}, internal_local=True)
    world = world_of(local, pod("a"), pod("b", node="there", addresses=(parse_address("10.2.0.1"),)))
    (frontend,) = world.frontends(local.ref)
    assert frontend.inside.backends == ((world.own_addresses(ref_of("a", "Pod"))[0], 80),)


def test_a_host_port_is_open_at_each_address_of_the_node_while_the_pod_runs() -> None:
    world = World(CONFIG, derive)
    given = pod("p", (TCP, 8080, ""), (UDP, 53, NODE))
    world.apply(Change(given.ref, given))
    world.take_dirty()
    assert world.frontends(ref_of("p", "HostPort")) == ()
    world.set_interface(given.ref, Interface(7, "v", bytes(6), bytes(6), ""))
    assert world.take_dirty().services == {ref_of("p", "HostPort")}
    frontends = {f"HostPort {NODE}:8080/6", "Loopback 127.0.0.1:8080/6", f"HostPort {NODE}:53/17"}
    assert shown(world, "p", "HostPort") == frontends
    (address,) = world.own_addresses(given.ref)
    assert {f.inside.backends for f in world.frontends(ref_of("p", "HostPort"))} == {((address, 8080),)}
    assert list(world.served()) == [ref_of("p", "HostPort")]
    assert remove(world, given.ref) == {ref_of("p", "HostPort")}
    assert world.frontends(ref_of("p", "HostPort")) == ()
    assert list(world.served()) == []


@pytest.mark.parametrize(
    "given",
    [
        pod("p", (TCP, 8080, ""), node="there", addresses=(parse_address("10.2.0.1"),)),
        pod("p", (TCP, 8080, ""), host_network=True),
        pod("p", (TCP, 0, "")),
        pod("p"),
    ],
)
def test_pods_without_host_ports_here(given: Pod) -> None:
    world = world_of(given)
    assert list(world.served()) == []
    assert world.frontends(ref_of("p", "HostPort")) == ()
    assert not world.problems()


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_one_host_port_several_pods(order: tuple[int, ...]) -> None:
    """Host address, protocol and port together are one pod's; a node port goes before."""
    pods = [
        pod("a", (TCP, 8080, NODE)),
        pod("b", (TCP, 8080, ""), (UDP, 8080, "")),
        pod("c", (TCP, 8080, "127.0.0.1")),
        pod("d", (TCP, 30001, NODE)),
    ]
    world = world_of(*(pods[n] for n in order), service("s", port(80, node_port=30001), kind="NodePort"))
    assert shown(world, "a", "HostPort") == {f"HostPort {NODE}:8080/6"}
    assert shown(world, "b", "HostPort") == {
        "Loopback 127.0.0.1:8080/6",
        "Loopback 127.0.0.1:8080/17",
        f"HostPort {NODE}:8080/17",
    }
    assert shown(world, "c", "HostPort") == shown(world, "d", "HostPort") == set()
    assert messages(world) == [
        "Pod shop/b: host port 8080/TCP belongs to Pod shop/a: choose another hostPort or hostIP",
        "Pod shop/c: host port 8080/TCP belongs to Pod shop/b: choose another hostPort or hostIP",
        "Pod shop/d: host port 30001/TCP belongs to Service shop/s: choose another hostPort or hostIP",
    ]
    assert ref_of("b", "HostPort") in remove(world, pods[0].ref)
    assert f"HostPort {NODE}:8080/6" in shown(world, "b", "HostPort")


def test_a_pod_does_not_take_over_somebody_elses_address() -> None:
    world = world_of(pod("p", (TCP, 53, "198.51.100.53")))
    assert world.frontends(ref_of("p", "HostPort")) == ()
    assert messages(world) == ["Pod shop/p: hostIP 198.51.100.53 is no address of node here: its port is not open"]


def test_kinds_are_as_the_address() -> None:
    world = world_of(pod("p", (TCP, 80, "127.0.0.1"), (TCP, 81, "0.0.0.0")))
    kinds = {(format_address(f.address), f.port): f.kind for f in world.frontends(ref_of("p", "HostPort"))}
    assert kinds == {
        ("127.0.0.1", 80): Kind.LOOPBACK,
        ("127.0.0.1", 81): Kind.LOOPBACK,
        (NODE, 81): Kind.HOST_PORT,
    }
