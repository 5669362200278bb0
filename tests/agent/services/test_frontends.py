"""Frontends of a service: which there are, and what is set on them."""

from __future__ import annotations

import msgspec
import pytest

from agent.objects import DeclaredPort, EndpointSlice, Exposure, Pod, Service, ServicePort, SliceEndpoint, SlicePort
from agent.services.frontends import NOBODY, frontends, host_ports
from agent.services.model import Frontend, Kind
from agent.world.config import NodeConfig, ServiceConfig
from policies.address import Prefix, format_address, parse_address
from policies.model import ObjectRef, Origin

ORIGIN = Origin("test", 0)
V4, V6 = parse_address("10.96.0.10"), parse_address("fd96::10")
NODE = NodeConfig("n1", (), addresses=(parse_address("192.0.2.1"), parse_address("2001:db8::1")))
PORTS = {(6, 80): 30080}


def service(type_: str = "ClusterIP", **exposure: object) -> Service:
    ports = (ServicePort("http", 6, 80, 8080),)
    ref = ObjectRef("Service", "shop", "web")
    return Service(ref, ORIGIN, type_, None, (), False, ports, exposure=Exposure(**exposure))  # type: ignore[arg-type]


def node(**settings: object) -> NodeConfig:
    return msgspec.structs.replace(NODE, services=ServiceConfig(**settings))  # type: ignore[arg-type]


def slices(count: int = 2) -> list[EndpointSlice]:
    members = tuple(SliceEndpoint((parse_address(f"10.1.{n >> 8}.{n & 255}"),)) for n in range(count))
    return [
        EndpointSlice(ObjectRef("EndpointSlice", "shop", "e"), ORIGIN, "web", (SlicePort("http", 6, 8080),), members)
    ]


def found(one: Service, at: NodeConfig = NODE, addresses: tuple[bytes, ...] = (V4,)) -> dict[str, Frontend]:
    made = frontends(one, addresses, PORTS, slices(), at)
    return {f"{f.kind} {format_address(f.address)} {f.port}": f for f in made}


def test_which_frontends_there_are() -> None:
    vip, external = parse_address("198.51.100.1"), parse_address("198.51.100.2")
    one = service("LoadBalancer", balancer_ips=(vip,), external_ips=(external,))
    assert set(found(one, node(external_ips=True))) == {
        "ClusterIP 10.96.0.10 80",
        "LoadBalancer 198.51.100.1 80",
        "ExternalIP 198.51.100.2 80",
        "NodePort 192.0.2.1 30080",
        "Loopback 127.0.0.1 30080",
    }


def test_families_are_those_of_the_cluster_addresses() -> None:
    assert set(found(service("NodePort"), addresses=(V6,))) == {
        "ClusterIP fd96::10 80",
        "NodePort 2001:db8::1 30080",
        "Loopback ::1 30080",
    }
    assert len(found(service("NodePort"), addresses=(V4, V6))) == 6


def test_a_service_without_an_address_yet_has_node_ports_of_the_families_it_asks_for() -> None:
    one = msgspec.structs.replace(service("NodePort"), families=("IPv4",))
    assert set(found(one, addresses=())) == {"NodePort 192.0.2.1 30080", "Loopback 127.0.0.1 30080"}


def test_an_address_that_is_the_balancers_too_keeps_its_source_ranges() -> None:
    vip = parse_address("198.51.100.1")
    one = service("LoadBalancer", balancer_ips=(vip,), external_ips=(vip,), source_ranges=(Prefix.host(V4),))
    (made,) = [f for f in found(one, node(external_ips=True)).values() if f.address == vip]
    assert made.kind is Kind.LOAD_BALANCER and made.ranges == (Prefix.host(V4),)


@pytest.mark.parametrize(
    ("given", "expected", "node_in"),
    [
        ((), (), True),
        (("203.0.113.0/24", "2001:db8::/32"), ("203.0.113.0/24",), False),
        (("192.0.2.0/24",), ("192.0.2.0/24",), True),
        (("2001:db8::/32",), (str(NOBODY),), False),
    ],
)
def test_source_ranges_are_of_the_frontends_family(
    given: tuple[str, ...], expected: tuple[str, ...], node_in: bool
) -> None:
    one = service(
        "LoadBalancer", balancer_ips=(parse_address("198.51.100.1"),), source_ranges=tuple(map(Prefix.parse, given))
    )
    for name, made in found(one).items():
        if name.startswith("LoadBalancer"):
            assert (tuple(map(str, made.ranges)), made.node_in_ranges) == (expected, node_in)
        else:
            assert (made.ranges, made.node_in_ranges) == ((), True)


@pytest.mark.parametrize(
    ("setting", "annotation", "kinds"),
    [
        ("random", "", set()),
        ("maglev", "", {Kind.NODE_PORT, Kind.LOOPBACK}),
        ("random", "maglev", {Kind.CLUSTER_IP, Kind.NODE_PORT, Kind.LOOPBACK}),
        ("maglev", "random", set()),
    ],
)
def test_maglev_by_the_service_or_the_node(setting: str, annotation: str, kinds: set[Kind]) -> None:
    one = service("NodePort", algorithm=annotation)
    made = found(one, node(algorithm=setting)).values()
    assert {f.kind for f in made if f.maglev} == kinds


def test_no_maglev_for_more_backends_than_a_table_serves() -> None:
    one, at = service(algorithm="maglev"), node(maglev_size=251)
    assert [f.maglev for n in (25, 26) for f in frontends(one, (V4,), {}, slices(n), at)] == [True, False]


@pytest.mark.parametrize(
    ("setting", "annotation", "protocols"),
    [
        ("snat", "", set()),
        ("dsr", "", {6, 17, 132}),
        ("hybrid", "", {6}),
        ("dsr", "snat", set()),
        ("snat", "hybrid", {6}),
    ],
)
def test_direct_server_return(setting: str, annotation: str, protocols: set[int]) -> None:
    ports = tuple(ServicePort(f"p{n}", n, 80, 80) for n in (6, 17, 132))
    one = msgspec.structs.replace(service("NodePort", forwarding=annotation), ports=ports)
    made = frontends(one, (V4,), {(n, 80): 30080 for n in (6, 17, 132)}, [], node(forwarding=setting))
    assert {f.protocol for f in made if f.dsr} == protocols
    assert {f.kind for f in made if f.dsr} <= {Kind.NODE_PORT}


def test_of_two_ports_that_are_one_the_first_holds() -> None:
    ports = (ServicePort("http", 6, 80, 8080), ServicePort("other", 6, 80, 9090))
    (made,) = frontends(msgspec.structs.replace(service(), ports=ports), (V4,), {}, slices(), NODE)
    assert made.port_name == "http" and made.inside.backends


def test_a_slices_port_must_have_name_and_protocol() -> None:
    for changed in (ServicePort("web", 6, 80, 8080), ServicePort("http", 17, 80, 8080)):
        (made,) = frontends(msgspec.structs.replace(service(), ports=(changed,)), (V4,), {}, slices(), NODE)
        assert not made.inside.backends and not made.inside.drops


def test_host_ports_without_host_ip_are_at_every_address() -> None:
    def keys(host: str, *own: str) -> set[str]:
        address = parse_address(host) if host else b""
        port = DeclaredPort("", 6, 80, 8080, address)
        pod = Pod(ObjectRef("Pod", "shop", "a"), ORIGIN, {}, addresses=tuple(map(parse_address, own)), ports=(port,))
        assert not host_ports(msgspec.structs.replace(pod, host_network=True), NODE), "it has the node's ports itself"
        return {f"{f.kind} {format_address(f.address)}" for f in host_ports(pod, NODE)}

    v4, v6 = {"HostPort 192.0.2.1", "Loopback 127.0.0.1"}, {"HostPort 2001:db8::1", "Loopback ::1"}
    assert keys("", "10.1.0.1") == keys("0.0.0.0", "10.1.0.1", "fd00::1") == v4
    assert keys("", "10.1.0.1", "fd00::1") == v4 | v6
    assert keys("::", "10.1.0.1", "fd00::1") == v6
    assert keys("192.0.2.9", "10.1.0.1") == {"HostPort 192.0.2.9"}
    assert keys("127.0.0.53", "10.1.0.1") == {"Loopback 127.0.0.53"}
    assert keys("2001:db8::9", "10.1.0.1") == set()
