"""`gatehouse services trace`: how people name packets, and what the kernel's memory adds."""

from __future__ import annotations

import time
from typing import Any

import pytest
from worlds import CONFIG, ORIGIN

from agent.api.protocol import ApiError
from agent.datapath import abi
from agent.objects import (
    Change,
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
from agent.status import TraceView
from agent.tracing import Asked, Tracer
from agent.world.world import World
from policies.address import Prefix, format_address, parse_address
from policies.model import ObjectRef

ABI = abi.load()
WEB_V4, WEB_V6, BALANCER = "10.96.9.1", "fd00:96::9:1", "203.0.113.9"
NODE = next(format_address(a) for a in CONFIG.addresses if "." in format_address(a))
MINUTE_NS = 60 * 10**9
Memory = dict[str, dict[bytes, bytes]]
"""Map → its entries."""


class Remembered:
    """A kernel map that holds these entries."""

    def __init__(self, entries: dict[bytes, bytes]) -> None:
        self.lookup = entries.get


def service(name: str, *addresses: str, exposure: Exposure = Exposure(), kind: str = "LoadBalancer") -> Service:  # noqa: B008
    ports = (ServicePort("http", 6, 80, 8080, node_port=30002 if name == "web" else 0),)
    ref = ObjectRef("Service", "shop", name)
    return Service(ref, ORIGIN, kind, None, tuple(map(parse_address, addresses)), False, ports, exposure=exposure)


def slice_of(name: str, *endpoints: tuple[str, str]) -> EndpointSlice:
    members = tuple(SliceEndpoint((parse_address(address),), node=node) for address, node in endpoints)
    ref = ObjectRef("EndpointSlice", "shop", f"{name}-{':' in endpoints[0][0]}")
    return EndpointSlice(ref, ORIGIN, name, (SlicePort("http", 6, 8080),), members)


def pod(name: str, *addresses: str, node: str = "") -> Pod:
    return Pod(ObjectRef("Pod", "shop", name), ORIGIN, {}, node=node, addresses=tuple(map(parse_address, addresses)))


BALANCED = Exposure(balancer_ips=(parse_address(BALANCER),))
OBJECTS: tuple[Object, ...] = (
    pod("client", "10.1.0.7", "fd00:1::7"),
    pod("a", "10.1.0.1", "fd00:1::1"),
    pod("b", "10.1.1.2", node="there"),
    service("web", WEB_V4, WEB_V6, exposure=BALANCED),
    slice_of("web", ("10.1.0.1", CONFIG.name), ("10.1.1.2", "there")),
    slice_of("web", ("fd00:1::1", CONFIG.name)),
    service("sticky", "10.96.9.2", exposure=Exposure(affinity_timeout_s=60), kind="ClusterIP"),
    slice_of("sticky", ("10.1.0.1", CONFIG.name), ("10.1.1.2", "there")),
    service(
        "ranged",
        "10.96.9.3",
        exposure=Exposure(balancer_ips=(parse_address("203.0.113.3"),), source_ranges=(Prefix.parse("192.0.2.0/24"),)),
    ),
    slice_of("ranged", ("10.1.0.1", CONFIG.name)),
)


def traced(source: str, destination: str, port: str = "80", memory: Memory | None = None, **more: Any) -> TraceView:
    world = World(CONFIG)
    for number, one in enumerate(OBJECTS):
        world.apply(Change(one.ref, one))
        if isinstance(one, Pod) and not one.node:
            world.set_interface(one.ref, Interface(number + 1, f"gh{number}", bytes(6), bytes(6), "/run/netns/pod"))
    world.take_dirty()
    maps: Any = {name: Remembered((memory or {}).get(name, {})) for name in ABI.maps}
    return Tracer(world, maps).answer(Asked(source, destination, port, **more))


def backends(view: TraceView) -> set[tuple[str, str]]:
    return {(d.address, d.seen_from) for d in view.deliveries}


@pytest.mark.parametrize(
    ("source", "destination", "port", "address", "found"),
    [
        ("shop/client", "shop/web", "80", WEB_V4, {("10.1.0.1", "client"), ("10.1.1.2", "client")}),
        ("shop/client", "shop/web", "http", WEB_V4, {("10.1.0.1", "client"), ("10.1.1.2", "client")}),
        ("shop/client", WEB_V6, "80", WEB_V6, {("fd00:1::1", "client")}),
        ("fd00:1::7", "shop/web", "80", WEB_V6, {("fd00:1::1", "client")}),
        ("shop/a", "shop/web", "80", WEB_V4, {("10.1.0.1", "hairpin"), ("10.1.1.2", "client")}),
        ("node", "shop/web", "80", WEB_V4, {("10.1.0.1", "client"), ("10.1.1.2", "client")}),
        (CONFIG.name, "shop/web", "80", WEB_V4, {("10.1.0.1", "client"), ("10.1.1.2", "client")}),
        ("outside", "shop/web", "80", BALANCER, {("10.1.0.1", "client"), ("10.1.1.2", "node")}),
        ("outside", "shop/web", "30002", NODE, {("10.1.0.1", "client"), ("10.1.1.2", "node")}),
        ("192.0.2.77", BALANCER, "80", BALANCER, {("10.1.0.1", "client"), ("10.1.1.2", "node")}),
        ("192.0.2.77", "shop/ranged", "80", "203.0.113.3", {("10.1.0.1", "client")}),
    ],
)
def test_delivered(source: str, destination: str, port: str, address: str, found: set[tuple[str, str]]) -> None:
    view = traced(source, destination, port)
    assert (view.outcome, view.destination.rpartition(":")[0].strip("[]")) == ("delivered", address)
    assert backends(view) == found
    assert view.steps


@pytest.mark.parametrize(
    ("source", "destination", "outcome", "reason"),
    [
        ("192.0.2.77", WEB_V4, "no service", ""),
        ("shop/client", "10.96.9.200", "no service", ""),
        ("198.51.100.1", "shop/ranged", "dropped", "source_range"),
    ],
)
def test_not_delivered(source: str, destination: str, outcome: str, reason: str) -> None:
    view = traced(source, destination)
    assert (view.outcome, view.reason, view.deliveries) == (outcome, reason, ())


@pytest.mark.parametrize(
    ("source", "destination", "port", "more", "says"),
    [
        ("shop/none", "shop/web", "80", {}, "there is no pod shop/none: see `gatehouse endpoints`"),
        ("shop/client", "shop/none", "80", {}, "there is no service shop/none: see `gatehouse services`"),
        ("shop/client", "shop/web", "81", {}, "has no TCP port 81 at an IPv4 address: it has 30002 (http), 80 (http)"),
        ("shop/client", "shop/web", "80", {"protocol": "QUIC"}, "'QUIC' is none of"),
        ("shop/client", WEB_V4, "http", {}, "'http' is not a port"),
        ("somebody", "shop/web", "80", {}, "'somebody' is no NAMESPACE/NAME and no address"),
        ("shop/b", WEB_V6, "80", {}, "shop/b has no IPv6 address"),
        ("outside", "shop/ranged", "80", {}, "give its address in place of `outside`"),
    ],
)
def test_asked_of_nothing(source: str, destination: str, port: str, more: dict[str, Any], says: str) -> None:
    with pytest.raises(ApiError) as raised:
        traced(source, destination, port, **more)
    assert says in str(raised.value)


def kept(address: str, idle_s: int = 0) -> Memory:
    """shop/client has this backend of shop/sticky, and used it so many seconds ago."""
    records = ABI.records
    frontend = records["service_key"].pack(address=parse_address("10.96.9.2"), port_be=abi.be16(80), protocol=6)
    value = records["service_value"].pack(affinity=5, affinity_timeout_s=60)
    client = records["affinity_key"].pack(affinity=5, client=parse_address("10.1.0.7"))
    used_ns = time.monotonic_ns() - idle_s * 10**9
    entry = records["affinity_value"].pack(used_ns=used_ns, address=parse_address(address), port_be=abi.be16(8080))
    return {"services": {frontend: value}, "affinity": {client: entry}}


@pytest.mark.parametrize(
    ("held", "found", "step"),
    [
        (None, {"10.1.0.1", "10.1.1.2"}, "This client has no backend yet."),
        (("10.1.1.2", 0), {"10.1.1.2"}, "This client is kept at 10.1.1.2:8080."),
        (("10.1.1.2", 61), {"10.1.0.1", "10.1.1.2"}, "This client has no backend yet."),
        (("10.1.0.99", 0), {"10.1.0.1", "10.1.1.2"}, "This client has no backend yet."),
    ],
)
def test_a_client_that_keeps_its_backend(held: tuple[str, int] | None, found: set[str], step: str) -> None:
    view = traced("shop/client", "shop/sticky", memory=kept(*held) if held else {})
    assert {address for address, _ in backends(view)} == found
    assert step in view.steps


@pytest.mark.parametrize("name", ["conntrack", "nat"])
@pytest.mark.parametrize(("lives_ns", "found"), [(MINUTE_NS, {"10.1.0.99"}), (-1, {"10.1.0.1", "10.1.1.2"})])
def test_a_flow_that_is_known(name: str, lives_ns: int, found: set[str]) -> None:
    """Its backend need not be one that new flows get."""
    ports = {"source_port_be": abi.be16(40000), "destination_port_be": abi.be16(80)}
    key = ABI.records["tuple"].pack(
        source=parse_address("10.1.0.7"), destination=parse_address(WEB_V4), protocol=6, **ports
    )
    entry = ABI.records[name].pack(
        after_source=parse_address("10.1.0.7"),
        expires_ns=time.monotonic_ns() + lives_ns,
        after_destination=parse_address("10.1.0.99"),
        after_destination_port_be=abi.be16(8080),
    )
    view = traced("shop/client", "shop/web", memory={name: {key: entry}}, source_port=40000)
    assert backends(view) == {(address, "client") for address in found}
    assert any("10.1.0.99:8080" in step for step in view.steps) is (lives_ns > 0)
