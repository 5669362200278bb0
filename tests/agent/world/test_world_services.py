"""Which frontends a node has: node ports given out, conflicts, hostPorts, what is reported."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import msgspec
import pytest
import small_worlds
from worlds import ORIGIN

from agent.objects import (
    Change,
    DeclaredPort,
    EndpointSlice,
    Exposure,
    Interface,
    Object,
    Pod,
    Service,
    ServicePort,
    SliceEndpoint,
    SlicePort,
)
from agent.services.model import Kind
from agent.sources.slices import derive
from agent.world.config import NodeConfig, ServiceConfig
from agent.world.world import World
from policies.address import Prefix, format_address, parse_address
from policies.model import ObjectRef

TCP, UDP, SCTP = 6, 17, 132
NODE = "192.0.2.1"
CONFIG = NodeConfig(
    name="here",
    pod_cidrs=(Prefix.parse("10.1.0.0/24"),),
    service_cidrs=(Prefix.parse("10.96.0.0/28"),),
    addresses=(parse_address(NODE),),
    services=ServiceConfig(node_ports=(30000, 30009), external_ips=True),
)


def world_of(*objects: Object, config: NodeConfig = CONFIG) -> World:
    world = World(config, derive)
    put(world, *objects)
    return world


def put(world: World, *objects: Object) -> set[ObjectRef]:
    """Returns the services that are dirty then."""
    return small_worlds.put(world, *objects).services


def remove(world: World, *refs: ObjectRef) -> set[ObjectRef]:
    return small_worlds.remove(world, *refs).services


def ref_of(name: str, kind: str = "Service") -> ObjectRef:
    return ObjectRef(kind, "shop", name)


def service(name: str, *ports: ServicePort, ip: str = "", kind: str = "ClusterIP", **fields: Any) -> Service:
    """Of TCP port 80, unless ports are given."""
    addresses = (parse_address(ip),) if ip else ()
    own = {key: fields.pop(key) for key in list(fields) if key in Exposure.__struct_fields__}
    given = {"selector": None, "headless": False, "exposure": Exposure(**own), **fields}
    return Service(
        ref_of(name), ORIGIN, kind, addresses=addresses, ports=ports or (ServicePort("", TCP, 80, 80),), **given
    )


def port(number: int, protocol: int = TCP, node_port: int = 0) -> ServicePort:
    return ServicePort(f"p{number}-{protocol}", protocol, number, number, node_port)


def pod(name: str, *host_ports: tuple[int, int, str], node: str = "", **fields: Any) -> Pod:
    ports = tuple(DeclaredPort("", p, 8080, n, parse_address(ip) if ip else b"") for p, n, ip in host_ports)
    return Pod(ObjectRef("Pod", "shop", name), ORIGIN, {"app": "web"}, node=node, ports=ports, **fields)


def shown(world: World, name: str, kind: str = "Service") -> set[str]:
    """The frontends of a service: "ClusterIP 10.96.0.2:80/6"."""
    return {f"{f.kind} {format_address(f.address)}:{f.port}/{f.protocol}" for f in world.frontends(ref_of(name, kind))}


def messages(world: World) -> list[str]:
    return sorted(f"{problem.subject}: {problem.message}" for problem in world.problems())


# ---- node ports


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


# ---- who has what

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


# ---- slices


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


# ---- hostPorts


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
