"""What a node makes of packets to services: rows of plain data, each a small cluster and packets into it.

Asked of the compiler (tests/agent/services/test_services_rows.py, by agent.services.trace and by the plan's map
entries) and of the datapath itself (tests/bpf/test_datapath_service_rows.py).

Names stand for addresses of either family (tests/bpf/frames.py, ADDRESSES): every row holds for IPv4 and IPv6, except
packets that name a family. The node is "node", in zone "here"; "a", "b", "c" are its pods, "far" and "far-too" pods of
another node, in zone "there"; "world" and "router" are outside the cluster, and so is "other-node".

    Svc.ports            "80/TCP", "dns:53/UDP>5353" (name, port, protocol, target port: else 8080), "80/TCP@30080" (and
                         node port)
    Svc.endpoints        "a", "far terminating": a pod, its state (ready; terminating: it still serves; ended: it no
                         longer does; unready) and hints ("zones=here,there", "nodes=node"); "elsewhere=router": an
                         endpoint that is no pod. All offer every port of the service.
    Row.host_ports       "a:8081/TCP>80", with "a:8081/TCP>80@node" for a hostIP
    Row.packets          (source, "name:port/PROTOCOL", expectation); protocol TCP where it is left out. Expectations:
                             "a far=node"       any of these may get it; the backend sees the client's own address or,
                                                after "=", "node"'s, or "hairpin"'s. "a:53": another port than 8080
                             "refused"          by RST, or ICMP port unreachable
                             "dropped REASON"   DROP_REASON of bpf/abi.h
                             "no service"       it goes on as it is
                         A source port or family may follow: ("world", "vip:80", "a", 4).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from frames import Family, address

from agent.objects import (
    Change,
    DeclaredPort,
    EndpointSlice,
    Exposure,
    Interface,
    Pod,
    Service,
    ServicePort,
    SliceEndpoint,
    SlicePort,
)
from agent.services.trace import Outcome, Packet, Trace
from agent.world.config import NodeConfig, ServiceConfig
from agent.world.world import World
from policies.address import Prefix
from policies.model import ObjectRef, Origin, Protocol

FAMILIES: tuple[Family, ...] = (4, 6)
LOCAL, REMOTE = ("a", "b", "c"), ("far", "far-too")
NODES = {"n1": LOCAL, "n2": REMOTE}
ORIGIN = Origin("rows", 0)
TARGET = 8080

SENTENCES = ("refused", "no service", "dropped NO_LOCAL_BACKEND", "dropped SOURCE_RANGE", "dropped SCTP_PORT")

Asked = tuple[str, str, str] | tuple[str, str, str, int]


@dataclass(frozen=True)
class Svc:
    """`exposure`: fields of agent.objects.Exposure, addresses as names and ranges as texts ("world/32")."""

    ports: tuple[str, ...] = ("80/TCP",)
    endpoints: tuple[str, ...] = ("a", "far")
    address: str = "web"
    type: str = "ClusterIP"
    name: str = "s"
    families: tuple[int, ...] = FAMILIES
    exposure: Mapping[str, Any] = field(default_factory=dict)
    headless: bool = False
    proxied: bool = True


@dataclass(frozen=True)
class Row:
    """`settings`: of agent.world.config.ServiceConfig."""

    name: str
    services: tuple[Svc, ...]
    packets: tuple[Asked, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    host_ports: tuple[str, ...] = ()


NODE_PORT = Svc(("80/TCP@30080",), type="NodePort")
BALANCER = Svc(("80/TCP@30080",), type="LoadBalancer", exposure={"balancer_ips": ("vip",)})


def exposed(base: Svc, *endpoints: str, **exposure: Any) -> Svc:
    return Svc(
        base.ports,
        endpoints or base.endpoints,
        base.address,
        base.type,
        base.name,
        base.families,
        {**base.exposure, **exposure},
    )


ROWS = (
    # ---- cluster addresses
    Row(
        "cluster address: any ready endpoint; pods keep their address",
        (Svc(),),
        (("b", "web:80", "a far"), ("node", "web:80", "a far")),
    ),
    Row("cluster address: nothing for packets from outside", (Svc(),), (("world", "web:80", "no service"),)),
    Row("cluster address: nor for those of other nodes", (Svc(),), (("other-node", "web:80", "no service"),)),
    Row("cluster address: another port is no service", (Svc(),), (("b", "web:81", "no service"),)),
    Row("cluster address: another protocol is no service", (Svc(),), (("b", "web:80/UDP", "no service"),)),
    Row("a pod through its own service", (Svc(endpoints=("a",)),), (("a", "web:80", "a=hairpin"),)),
    Row("a pod that is one of several backends", (Svc(),), (("a", "web:80", "a=hairpin far"),)),
    Row("no endpoint: refused", (Svc(endpoints=()),), (("b", "web:80", "refused"), ("node", "web:80", "refused"))),
    Row("no endpoint, UDP: refused", (Svc(("80/UDP",), ()),), (("b", "web:80/UDP", "refused"),)),
    Row("no ready endpoint: refused", (Svc(endpoints=("a unready", "far ended")),), (("b", "web:80", "refused"),)),
    Row(
        "one port with three protocols",
        (Svc(("t:80/TCP>1", "u:80/UDP>2", "s:80/SCTP>80")),),
        (
            ("b", "web:80/TCP", "a:1 far:1"),
            ("b", "web:80/UDP", "a:2 far:2"),
            ("b", "web:80/SCTP", "a:80 far:80"),
        ),
    ),
    Row(
        "several ports",
        (Svc(("http:80/TCP>8080", "admin:81/TCP>9090", "dns:53/UDP>5353")),),
        (("b", "web:80", "a far"), ("b", "web:81", "a:9090 far:9090"), ("b", "web:53/UDP", "a:5353 far:5353")),
    ),
    Row(
        "two services with one backend",
        (Svc(endpoints=("a",)), Svc(endpoints=("a",), address="dns", name="t")),
        (("b", "web:80", "a"), ("b", "dns:80", "a")),
    ),
    Row("endpoints without a pod", (Svc(endpoints=("elsewhere=router",)),), (("b", "web:80", "router"),)),
    Row("backend that is the node itself", (Svc(endpoints=("here=node",)),), (("b", "web:80", "node"),)),
    Row("headless: no frontend", (Svc(headless=True),), (("b", "web:80", "no service"),)),
    Row("another proxy's service", (Svc(proxied=False),), (("b", "web:80", "no service"),)),
    Row("ExternalName: no frontend", (Svc(type="ExternalName"),), (("b", "web:80", "no service"),)),
    Row(
        "an address that two services name: the first by name has it",
        (Svc(endpoints=("far",), name="t"), Svc(endpoints=("a",), name="s")),
        (("b", "web:80", "a"),),
    ),
    Row(
        "SCTP: the port cannot be changed",
        (Svc(("80/SCTP>8080@30080",), type="NodePort"),),
        (
            ("b", "web:80/SCTP", "dropped SCTP_PORT"),
            ("world", "node:30080/SCTP", "dropped SCTP_PORT"),
            ("far", "node:30080/SCTP", "dropped SCTP_PORT"),
        ),
    ),
    # ---- families
    Row(
        "single stack: no frontend of the other family",
        (Svc(families=(4,)),),
        (("b", "web:80", "a far", 4), ("b", "web:80", "no service", 6)),
    ),
    Row(
        "single stack: node ports of its family alone",
        (Svc(("80/TCP@30080",), type="NodePort", families=(6,)),),
        (("world", "node:30080", "a far=node", 6), ("world", "node:30080", "no service", 4)),
    ),
    Row(
        "dual stack: a family without endpoints refuses",
        (Svc(endpoints=("a/4", "far/4")),),
        (("b", "web:80", "a far", 4), ("b", "web:80", "refused", 6)),
    ),
    # ---- terminating endpoints
    Row("ready ones go before terminating ones", (Svc(endpoints=("a terminating", "far")),), (("b", "web:80", "far"),)),
    Row(
        "none is ready: those that terminate and still serve",
        (Svc(endpoints=("a terminating", "far terminating", "far-too ended")),),
        (("b", "web:80", "a far"),),
    ),
    Row("terminating and no longer serving: refused", (Svc(endpoints=("a ended",)),), (("b", "web:80", "refused"),)),
    # ---- internalTrafficPolicy
    Row(
        "internal Local: endpoints here",
        (exposed(Svc(), "a", "b", "far", internal_local=True),),
        (("c", "web:80", "a b"), ("node", "web:80", "a b")),
    ),
    Row(
        "internal Local, none here: dropped",
        (exposed(Svc(), "far", internal_local=True),),
        (("a", "web:80", "dropped NO_LOCAL_BACKEND"), ("node", "web:80", "dropped NO_LOCAL_BACKEND")),
    ),
    Row(
        "internal Local, none anywhere: refused",
        (exposed(Svc(), "far unready", internal_local=True),),
        (("a", "web:80", "refused"),),
    ),
    Row(
        "internal Local: terminating here before ready elsewhere",
        (exposed(Svc(), "a terminating", "far", internal_local=True),),
        (("b", "web:80", "a"),),
    ),
    Row(
        "internal Local: ready here before terminating here",
        (exposed(Svc(), "a terminating", "b", "far", internal_local=True),),
        (("c", "web:80", "b"),),
    ),
    Row(
        "internal Local, only terminating elsewhere: dropped",
        (exposed(Svc(), "a unready", "far terminating", internal_local=True),),
        (("b", "web:80", "dropped NO_LOCAL_BACKEND"),),
    ),
    Row(
        "internal Local concerns the cluster address alone",
        (exposed(NODE_PORT, "far", internal_local=True),),
        (("a", "node:30080", "far"), ("world", "node:30080", "far=node"), ("a", "web:80", "dropped NO_LOCAL_BACKEND")),
    ),
    # ---- node ports
    Row(
        "node port: from outside, to other nodes from the node's address",
        (NODE_PORT,),
        (("world", "node:30080", "a far=node"), ("other-node", "node:30080", "a far=node")),
    ),
    Row(
        "node port: from a pod here", (NODE_PORT,), (("b", "node:30080", "a far"), ("a", "node:30080", "a=hairpin far"))
    ),
    Row("node port: from a pod elsewhere", (NODE_PORT,), (("far", "node:30080", "a far=node"),)),
    Row(
        "node port: from the node itself",
        (NODE_PORT,),
        (("node", "node:30080", "a far"), ("loopback", "loopback:30080", "a=node far=node")),
    ),
    Row(
        "node port: loopback is the node's own",
        (NODE_PORT,),
        (("world", "loopback:30080", "no service"), ("b", "loopback:30080", "no service")),
    ),
    Row("node port: the cluster address is there, too", (NODE_PORT,), (("b", "web:80", "a far"),)),
    Row("node port: other nodes' are theirs", (NODE_PORT,), (("b", "other-node:30080", "no service"),)),
    Row(
        "node port without endpoint: refused", (exposed(NODE_PORT, "a unready"),), (("world", "node:30080", "refused"),)
    ),
    Row(
        "node ports only within the given blocks",
        (NODE_PORT,),
        (
            ("world", "node:30080", "no service"),
            ("node", "loopback:30080", "a far"),
        ),
        {"node_port_addresses": (Prefix.parse("127.0.0.0/8"), Prefix.parse("::1/128"))},
    ),
    Row(
        "one node port, two protocols",
        (Svc(("t:53/TCP>53@30053", "u:53/UDP>53@30053"), type="NodePort"),),
        (("world", "node:30053/TCP", "a:53 far:53=node"), ("world", "node:30053/UDP", "a:53 far:53=node")),
    ),
    Row(
        "SCTP node port",
        (Svc(("30080/SCTP>30080@30080",), type="NodePort"),),
        (("world", "node:30080/SCTP", "a:30080 far:30080=node"), ("b", "web:30080/SCTP", "a:30080 far:30080")),
    ),
    Row(
        "two services, one node port: the first by name has it",
        (
            Svc(("80/TCP@30080",), ("a",), type="NodePort"),
            Svc(("80/TCP@30080",), ("b",), "dns", "NodePort", "t"),
        ),
        (("world", "node:30080", "a"), ("c", "dns:80", "b")),
    ),
    # ---- externalTrafficPolicy
    Row(
        "external Local: endpoints here, for clients outside",
        (exposed(NODE_PORT, external_local=True),),
        (("world", "node:30080", "a"), ("other-node", "node:30080", "a")),
    ),
    Row(
        "external Local: clients in the cluster use all",
        (exposed(NODE_PORT, external_local=True),),
        (
            ("b", "node:30080", "a far"),
            ("node", "node:30080", "a far"),
            ("far-too", "node:30080", "a far=node"),
            ("b", "web:80", "a far"),
        ),
    ),
    Row(
        "external Local, none here: dropped, but not in the cluster",
        (exposed(NODE_PORT, "far", external_local=True),),
        (
            ("world", "node:30080", "dropped NO_LOCAL_BACKEND"),
            ("a", "node:30080", "far"),
            ("node", "node:30080", "far"),
        ),
    ),
    Row(
        "external Local, none anywhere: refused",
        (exposed(NODE_PORT, "a unready", external_local=True),),
        (("world", "node:30080", "refused"), ("b", "node:30080", "refused")),
    ),
    Row(
        "external Local: terminating here for clients outside, ready elsewhere for others",
        (exposed(NODE_PORT, "a terminating", "far", external_local=True),),
        (("world", "node:30080", "a"), ("b", "node:30080", "far")),
    ),
    Row(
        "external Local: terminating elsewhere is no endpoint here",
        (exposed(NODE_PORT, "far terminating", external_local=True),),
        (("world", "node:30080", "dropped NO_LOCAL_BACKEND"), ("b", "node:30080", "far")),
    ),
    Row(
        "both Local",
        (exposed(NODE_PORT, "a", "far", internal_local=True, external_local=True),),
        (("world", "node:30080", "a"), ("b", "web:80", "a"), ("b", "node:30080", "a far")),
    ),
    # ---- external addresses
    Row(
        "externalIPs",
        (exposed(Svc(), external_ips=("vip",)),),
        (("world", "vip:80", "a far=node"), ("b", "vip:80", "a far"), ("node", "vip:80", "a far")),
        {"external_ips": True},
    ),
    Row(
        "externalIPs are left alone unless asked for",
        (exposed(Svc(), external_ips=("vip",)),),
        (("world", "vip:80", "no service"), ("b", "vip:80", "no service"), ("b", "web:80", "a far")),
    ),
    Row(
        "externalIPs, external Local",
        (exposed(Svc(), external_ips=("vip",), external_local=True),),
        (("world", "vip:80", "a"), ("b", "vip:80", "a far")),
        {"external_ips": True},
    ),
    Row(
        "externalIPs do not take a cluster address",
        (Svc(), exposed(Svc(endpoints=("b",), address="dns", name="evil"), external_ips=("web",))),
        (("c", "web:80", "a far"), ("c", "dns:80", "b")),
        {"external_ips": True},
    ),
    # ---- load balancers
    Row(
        "load balancer address",
        (BALANCER,),
        (
            ("world", "vip:80", "a far=node"),
            ("b", "vip:80", "a far"),
            ("node", "vip:80", "a far"),
            ("world", "node:30080", "a far=node"),
        ),
    ),
    Row(
        "load balancer without node ports",
        (Svc(type="LoadBalancer", exposure={"balancer_ips": ("vip",), "allocates_node_ports": False}),),
        (("world", "vip:80", "a far=node"), ("world", "node:30080", "no service")),
    ),
    Row("load balancer without address yet", (Svc(type="LoadBalancer"),), (("world", "vip:80", "no service"),)),
    Row(
        "load balancer, external Local",
        (exposed(BALANCER, external_local=True),),
        (("world", "vip:80", "a"), ("b", "vip:80", "a far")),
    ),
    Row(
        "load balancer, external Local, none here: dropped",
        (exposed(BALANCER, "far", external_local=True),),
        (("world", "vip:80", "dropped NO_LOCAL_BACKEND"), ("b", "vip:80", "far")),
    ),
    Row(
        "load balancer without endpoint: refused", (exposed(BALANCER, "a unready"),), (("world", "vip:80", "refused"),)
    ),
    Row(
        "source ranges",
        (exposed(BALANCER, source_ranges=("world",)),),
        (
            ("world", "vip:80", "a far=node"),
            ("router", "vip:80", "dropped SOURCE_RANGE"),
            ("b", "vip:80", "dropped SOURCE_RANGE"),
            ("node", "vip:80", "dropped SOURCE_RANGE"),
        ),
    ),
    Row(
        "source ranges that hold the node and a pod",
        (exposed(BALANCER, source_ranges=("node", "b")),),
        (("node", "vip:80", "a far"), ("b", "vip:80", "a far"), ("c", "vip:80", "dropped SOURCE_RANGE")),
    ),
    Row(
        "source ranges concern the balancer's address alone",
        (exposed(BALANCER, source_ranges=("router",)),),
        (("world", "node:30080", "a far=node"), ("b", "web:80", "a far")),
    ),
    Row(
        "source ranges go before a missing endpoint",
        (exposed(BALANCER, "a unready", source_ranges=("router",)),),
        (("world", "vip:80", "dropped SOURCE_RANGE"), ("router", "vip:80", "refused")),
    ),
    Row(
        "source ranges of one family let nobody of the other in",
        (exposed(BALANCER, source_ranges=("0.0.0.0/0",)),),
        (("world", "vip:80", "a far=node", 4), ("world", "vip:80", "dropped SOURCE_RANGE", 6)),
    ),
    Row(
        "source ranges of everything IPv6 hold no IPv4",
        (exposed(BALANCER, source_ranges=("::/0",)),),
        (("world", "vip:80", "dropped SOURCE_RANGE", 4), ("world", "vip:80", "a far=node", 6)),
    ),
    # ---- hints
    Row(
        "hints: this zone",
        (Svc(endpoints=("a zones=here", "far zones=there")),),
        (("b", "web:80", "a"), ("node", "web:80", "a")),
    ),
    Row(
        "hints: an endpoint may be for several zones",
        (Svc(endpoints=("a zones=here", "far zones=here,there")),),
        (("b", "web:80", "a far"),),
    ),
    Row(
        "hints: none of them if one ready endpoint has none",
        (Svc(endpoints=("a zones=here", "far")),),
        (("b", "web:80", "a far"),),
    ),
    Row(
        "hints: none of them if no endpoint is for this zone",
        (Svc(endpoints=("a zones=there", "far zones=there")),),
        (("b", "web:80", "a far"),),
    ),
    Row(
        "hints: those of endpoints that are not ready do not count",
        (Svc(endpoints=("a zones=here", "far zones=there", "far-too unready", "b terminating")),),
        (("c", "web:80", "a"),),
    ),
    Row(
        "hints: this node goes before this zone",
        (Svc(endpoints=("a zones=here nodes=n1", "far zones=here nodes=n2")),),
        (("b", "web:80", "a"),),
    ),
    Row(
        "hints: no endpoint for this node, so by zone",
        (Svc(endpoints=("a zones=there nodes=n2", "far zones=here nodes=n2")),),
        (("b", "web:80", "far"),),
    ),
    Row(
        "hints: at node ports, too",
        (exposed(NODE_PORT, "a zones=here", "far zones=there"),),
        (("world", "node:30080", "a"), ("b", "node:30080", "a")),
    ),
    Row(
        "hints do not concern traffic policy Local",
        (exposed(NODE_PORT, "a zones=there", "far zones=here", external_local=True),),
        (("world", "node:30080", "a"), ("b", "node:30080", "far")),
    ),
    Row(
        "hints do not concern terminating endpoints",
        (Svc(endpoints=("a terminating zones=there", "far terminating zones=here")),),
        (("b", "web:80", "a far"),),
    ),
    # ---- affinity, Maglev, forwarding
    Row(
        "affinity: any backend at first",
        (exposed(NODE_PORT, affinity_timeout_s=10800),),
        (("b", "web:80", "a far"), ("world", "node:30080", "a far=node")),
    ),
    Row(
        "Maglev: any of them, if the source port is not known",
        (exposed(NODE_PORT, algorithm="maglev"),),
        (("world", "node:30080", "a far=node"), ("b", "web:80", "a far")),
        {"maglev_size": 251},
    ),
    Row(
        "Maglev: more backends than a table serves, so at random",
        (exposed(NODE_PORT, "a", "b", "c", "far", "far-too", algorithm="maglev"),),
        (("world", "node:30080", "a b c far=node far-too=node"),),
        {"maglev_size": 37},
    ),
    Row(
        "DSR: backends on other nodes see the client",
        (NODE_PORT,),
        (("world", "node:30080", "a far"), ("far-too", "node:30080", "a far"), ("b", "node:30080", "a far")),
        {"forwarding": "dsr"},
    ),
    Row(
        "DSR: a pod elsewhere that is its own backend cannot answer itself",
        (NODE_PORT,),
        (("far", "node:30080", "a far=node"),),
        {"forwarding": "dsr"},
    ),
    Row(
        "hybrid: DSR for TCP, not for UDP",
        (Svc(("t:80/TCP@30080", "u:80/UDP@30080"), type="NodePort"),),
        (("world", "node:30080/TCP", "a far"), ("world", "node:30080/UDP", "a far=node")),
        {"forwarding": "hybrid"},
    ),
    Row(
        "forwarding as the service says",
        (exposed(NODE_PORT, forwarding="dsr"), Svc(("81/TCP@30081",), address="dns", type="NodePort", name="t")),
        (("world", "node:30080", "a far"), ("world", "node:30081", "a far=node")),
    ),
    # ---- hostPorts
    Row(
        "hostPort",
        (),
        (
            ("world", "node:8081", "a:80"),
            ("b", "node:8081", "a:80"),
            ("a", "node:8081", "a:80=hairpin"),
            ("node", "node:8081", "a:80"),
            ("node", "loopback:8081", "a:80"),
            ("world", "node:8081/UDP", "no service"),
        ),
        host_ports=("a:8081/TCP>80",),
    ),
    Row(
        "hostPort at one address",
        (),
        (
            ("node", "loopback:8081", "a:80", 4),
            ("node", "loopback:8081", "no service", 6),
            ("world", "node:8081", "no service"),
        ),
        host_ports=("a:8081/TCP>80@loopback",),
    ),
    Row(
        "hostPort of a pod elsewhere is not here",
        (),
        (("world", "node:8081", "no service"),),
        host_ports=("far:8081/TCP>80",),
    ),
    Row(
        "hostPorts of one number, two protocols",
        (),
        (("world", "node:53/TCP", "a:53"), ("world", "node:53/UDP", "b:53")),
        host_ports=("a:53/TCP>53", "b:53/UDP>53"),
    ),
    Row(
        "a node port goes before a hostPort",
        (NODE_PORT,),
        (("world", "node:30080", "a far=node"),),
        host_ports=("b:30080/TCP>80",),
    ),
)


# ---- from rows to a World


def world_of(row: Row, interfaces: Mapping[str, int] | None = None) -> World:
    """The cluster of a row, seen from "node". `interfaces`: indexes of the local pods' interfaces, from 101 if None."""
    world = World(config_of(row))
    indexes = interfaces or {name: 101 + number for number, name in enumerate(LOCAL)}
    for node, names in NODES.items():
        for name in names:
            pod = _pod(name, node, row)
            world.apply(Change(pod.ref, pod))
            if node == "n1":
                mac = bytes((2, 0, 0, 0, 0, name.encode()[0]))
                world.set_interface(pod.ref, Interface(indexes[name], name, mac, mac, ""))
    for number, service in enumerate(row.services):
        for thing in _objects(service, number):
            world.apply(Change(thing.ref, thing))
    return world


def config_of(row: Row) -> NodeConfig:
    settings = msgspec.structs.replace(ServiceConfig(), **row.settings)
    pods = (Prefix.parse("10.0.0.0/24"), Prefix.parse("fd00::/112"))
    addresses = tuple(address("node", family) for family in FAMILIES)
    return NodeConfig("n1", pods, (), addresses, zone="here", services=settings)


def packets_of(row: Row) -> Iterator[tuple[Packet, Family, str]]:
    """Every packet of a row in each family it is asked in, and what is expected."""
    for asked in row.packets:
        source, text, expected = asked[:3]
        where, _, protocol = text.partition("/")
        name, _, port = where.partition(":")
        for family in FAMILIES:
            if len(asked) == 3 or asked[3] == family:
                number = Protocol.BY_NAME[protocol or "TCP"]
                packet = Packet(address(source, family), address(name, family), int(port), number)
                yield packet, family, expected if expected in SENTENCES else " ".join(sorted(expected.split()))


def said(trace: Trace, family: Family) -> str:
    """A trace in the words of a row."""
    if trace.outcome is Outcome.DROPPED:
        return f"dropped {trace.reason}"
    if trace.outcome is not Outcome.DELIVERED:
        return str(trace.outcome)
    names = {address(name, family): name for name in (*LOCAL, *REMOTE, "node", "router")}
    told: list[str] = []
    for one in trace.deliveries:
        port = "" if one.backend[1] == TARGET else f":{one.backend[1]}"
        told.append(names[one.backend[0]] + port + ("" if one.source == "client" else f"={one.source}"))
    return " ".join(sorted(told))


def _pod(name: str, node: str, row: Row) -> Pod:
    ports = tuple(_host_port(text) for text in row.host_ports if text.partition(":")[0] == name)
    addresses = tuple(address(name, family) for family in FAMILIES)
    return Pod(ObjectRef("Pod", "rows", name), ORIGIN, {"app": name}, node, addresses=addresses, ports=ports)


def _host_port(text: str) -> DeclaredPort:
    ports, _, where = text.partition(":")[2].partition("@")
    number, _, rest = ports.partition("/")
    protocol, _, target = rest.partition(">")
    at = address(where, 4) if where else b""
    return DeclaredPort("", Protocol.BY_NAME[protocol], int(target), int(number), at)


def _objects(given: Svc, number: int) -> list[Service | EndpointSlice]:
    ports = [_port(text) for text in given.ports]
    ref = ObjectRef("Service", "rows", given.name)
    families = tuple({4: "IPv4", 6: "IPv6"}[family] for family in given.families)
    addresses = () if given.headless else tuple(address(given.address, _family(f)) for f in given.families)
    service = Service(
        ref,
        ORIGIN,
        given.type,
        None,
        addresses,
        given.headless,
        tuple(ports),
        families,
        exposure=_exposure(given.exposure),
        proxied=given.proxied,
    )
    targets = tuple(SlicePort(port.name, port.protocol, int(port.target)) for port in ports)
    slices = [
        EndpointSlice(
            ObjectRef("EndpointSlice", "rows", f"{given.name}-{number}-{family}"),
            ORIGIN,
            given.name,
            targets,
            tuple(e for text in given.endpoints if (e := _endpoint(text, family)) is not None),
        )
        for family in FAMILIES
    ]
    return [service, *slices]


def _port(text: str) -> ServicePort:
    """ "name:80/TCP>8080@30080": all but port and protocol may be left out."""
    name, _, rest = text.rpartition(":")
    rest, _, node_port = rest.partition("@")
    rest, _, target = rest.partition(">")
    port, _, protocol = rest.partition("/")
    return ServicePort(name, Protocol.BY_NAME[protocol], int(port), int(target or TARGET), int(node_port or 0))


def _endpoint(text: str, family: Family) -> SliceEndpoint | None:
    who, *words = text.split()
    who, _, only = who.partition("/")
    if only and int(only) != family:
        return None
    label, _, other = who.partition("=")
    node = next((n for n, names in NODES.items() if who in names), "n1" if label == "here" else "")
    hints = dict(word.split("=") for word in words if "=" in word)
    state = next((word for word in words if "=" not in word), "ready")
    return SliceEndpoint(
        (address(other or who, family),),
        ready=state == "ready",
        serving=state in ("ready", "terminating"),
        terminating=state in ("terminating", "ended"),
        node=node,
        zones=tuple(hints["zones"].split(",")) if "zones" in hints else (),
        nodes=tuple(hints["nodes"].split(",")) if "nodes" in hints else (),
    )


def _exposure(given: Mapping[str, Any]) -> Exposure:
    values = dict(given)
    for name in ("balancer_ips", "external_ips"):
        values[name] = tuple(address(one, family) for one in values.get(name, ()) for family in FAMILIES)
    values["source_ranges"] = tuple(block for text in values.get("source_ranges", ()) for block in _blocks(text))
    return Exposure(**values)


def _blocks(text: str) -> list[Prefix]:
    if "/" in text:
        return [Prefix.parse(text)]
    return [Prefix.host(address(text, family)) for family in FAMILIES]


def _family(number: int) -> Family:
    return 4 if number == 4 else 6
