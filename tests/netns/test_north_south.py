"""Services to clients outside: who serves, and which client address the server sees, by forwarding, traffic policy,
node of entry and where the backends are. Every row is tried as node port, load balancer address and external IP, in TCP
and UDP, IPv4 and IPv6."""

from __future__ import annotations

import itertools
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import probes
import pytest
from agents import Document
from north_south import CLIENT_IPS, FAMILIES, NODE_IPS, PROTOCOLS, TARGET, NorthSouth, pod, pod_ip, routed_ip
from probes import Answer

# `pods`: the nodes on which the service has backends. `frontend`: `all` kinds, or those at addresses that are `routed`
# to the node of entry. `seen`: by the server: the client's address, or a node's. hybrid is dsr for TCP, snat for UDP.
TABLE = """
# forwarding  policy   pods    entry  frontend  served by  seen
snat          Cluster  n1      n1     all       n1         client
snat          Cluster  n1      n2     all       n1         n2
snat          Cluster  n2      n1     all       n2         n1
snat          Cluster  n2      n2     all       n2         client
dsr           Cluster  n1      n1     all       n1         client
dsr           Cluster  n1      n2     all       n1         client
dsr           Cluster  n2      n1     all       n2         client
dsr           Cluster  n2      n2     all       n2         client
hybrid/TCP    Cluster  n2      n1     all       n2         client
hybrid/UDP    Cluster  n2      n1     all       n2         n1
any           Cluster  none    n1     all       refused
any           Local    n1      n1     all       n1         client
any           Local    n1      n2     all       dropped
any           Local    n2      n1     all       dropped
any           Local    n2      n2     all       n2         client
any           Local    both    n1     all       n1         client
any           Local    both    n2     all       n2         client
any           Local    none    n1     all       refused
"""
# From pods, which are inside wherever their packets come by: `client` runs on that node and asks frontends of `entry`.
# What goes straight to a backend goes with the pod's own address.
PODS_TABLE = """
# forwarding  policy   pods    entry  frontend  served by  seen    client
snat          Cluster  n1      n1     all       n1         client  n1
snat          Cluster  n2      n1     all       n2         client  n1
snat          Cluster  n1      n2     routed    n1         client  n1
snat          Cluster  n2      n2     all       n2         client  n1
snat          Cluster  n1      n2     node      n1         n2      n1
any           Cluster  none    n1     all       refused    -       n1
any           Cluster  none    n2     all       refused    -       n1
any           Local    n2      n1     all       n2         client  n1
any           Local    n2      n2     all       n2         client  n1
any           Local    n1      n2     routed    n1         client  n1
snat          Local    n1      n2     node      n1         n2      n1
any           Local    none    n2     all       refused    -       n1
"""
FORWARDINGS = ("snat", "dsr", "hybrid")
POLICIES = ("Cluster", "Local")
PLACES = {"n1": ("n1",), "n2": ("n2",), "both": ("n1", "n2"), "none": ()}
KINDS = {
    "all": ("NodePort", "LoadBalancer", "ExternalIP"),
    "routed": ("LoadBalancer", "ExternalIP"),
    "node": ("NodePort",),
}
SERVICES = [f"{f}-{p}-{w}".lower() for f, p, w in itertools.product(FORWARDINGS, POLICIES, PLACES)]
FIRST_NODE_PORT, FIRST_CHECK = 30_000, 30_500
EXTERNAL = 100
"""External IPs are numbered from here on, load balancer addresses from 1."""
DROPPED_S, ANSWERED_S = 0.4, probes.TIMEOUT_S
RESULTS = {"refused": "refused", "timeout": "dropped"}
AT_ONCE = 12
_source_ports = itertools.count(10_000)
"""Of two flows to one backend from one source port only the first is answered directly."""


@dataclass(frozen=True)
class Row:
    forwarding: str
    protocols: tuple[str, ...]
    policy: str
    pods: str
    entry: str
    frontend: str
    outcome: str
    seen: str = "-"
    client: str = "outside"

    def __str__(self) -> str:
        words = (self.forwarding, "+".join(self.protocols), self.policy, self.pods, "by", self.entry, self.frontend)
        return "-".join((*words, self.client))

    @property
    def service(self) -> int:
        return SERVICES.index(f"{self.forwarding}-{self.policy}-{self.pods}".lower())


def rows(table: str, any_forwarding: tuple[str, ...] = FORWARDINGS) -> Iterator[Row]:
    for line in table.splitlines():
        if not line or line.startswith("#"):
            continue
        forwarding, *others = line.split()
        name, _, protocol = forwarding.partition("/")
        for each in any_forwarding if name == "any" else (name,):
            yield Row(each, (protocol,) if protocol else PROTOCOLS, *others)


def target(row: Row, kind: str, protocol: str, family: str) -> tuple[str, int]:
    """Address and port a client outside would use."""
    if kind == "NodePort":
        return NODE_IPS[row.entry][family], FIRST_NODE_PORT + row.service * len(PROTOCOLS) + PROTOCOLS.index(protocol)
    first = EXTERNAL if kind == "ExternalIP" else 1
    return routed_ip(row.entry, first + row.service, family), 80


def service(number: int, name: str) -> Document:
    forwarding, policy, where = name.split("-")
    ports = [
        {
            "name": protocol.lower(),
            "protocol": protocol,
            "port": 80,
            "targetPort": TARGET,
            "nodePort": FIRST_NODE_PORT + number * len(PROTOCOLS) + index,
        }
        for index, protocol in enumerate(PROTOCOLS)
    ]
    routed = [(node, family) for node in NODE_IPS for family in FAMILIES]
    ingress = [{"ip": routed_ip(node, 1 + number, family), "ipMode": "VIP"} for node, family in routed]
    check = {"healthCheckNodePort": FIRST_CHECK + number} if policy == "local" else {}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "shop", "annotations": {"gatehouse.io/forwarding": forwarding}},
        "spec": {
            "type": "LoadBalancer",
            **check,
            "externalTrafficPolicy": policy.capitalize(),
            "selector": {where: "yes"},
            "ports": ports,
            "externalIPs": [routed_ip(node, EXTERNAL + number, family) for node, family in routed],
        },
        "status": {"loadBalancer": {"ingress": ingress}},
    }


@pytest.fixture(scope="module")
def served(north_south: NorthSouth) -> Iterator[NorthSouth]:
    labels = {node: {where: "yes" for where, nodes in PLACES.items() if node in nodes} for node in NODE_IPS}
    pods = [pod(f"shop/{node}", node, 10, **labels[node]) for node in NODE_IPS]
    pods += [pod(f"shop/client-{node}", node, 20) for node in NODE_IPS]
    north_south.write("table.yaml", *pods, *itertools.starmap(service, enumerate(SERVICES)))
    north_south.run("--xdp", "off")
    with north_south.served("n1/shop/n1", "n2/shop/n2"):
        yield north_south


@pytest.fixture(scope="module", params=["off", "generic"])
def cluster(request: pytest.FixtureRequest, served: NorthSouth) -> NorthSouth:
    served.run("--xdp", request.param)
    return served


CASES = [
    *(("off", row) for table in (TABLE, PODS_TABLE) for row in rows(table)),
    *(("generic", row) for row in rows(TABLE, ("dsr",))),
]
"""XDP has nothing to say of pods' own packets, nor of forwarding where nobody is forwarded to."""


@pytest.mark.parametrize(("cluster", "row"), CASES, indirect=["cluster"], ids=str)
def test_table(cluster: NorthSouth, row: Row) -> None:
    cases = list(itertools.product(KINDS[row.frontend], row.protocols, FAMILIES))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        wrong = [said for said in pool.map(lambda case: judged(cluster, row, *case), cases) if said]
    assert not wrong, "\n".join(wrong)


def judged(cluster: NorthSouth, row: Row, kind: str, protocol: str, family: str) -> str:
    """What went otherwise than the row says."""
    answer = asked(cluster, row, kind, protocol, family)
    got = f"{answer.label} {answer.seen_from}" if answer else RESULTS[answer.result]
    wanted = row.outcome
    if row.seen != "-":
        wanted += " " + (client_ip(row, family) if row.seen == "client" else NODE_IPS[row.seen][family])
    return "" if got == wanted else f"{kind} {protocol} {family}: {got}, not {wanted}"


def client_ip(row: Row, family: str) -> str:
    return CLIENT_IPS[family] if row.client == "outside" else pod_ip(row.client, 20, family)


def asked(cluster: NorthSouth, row: Row, kind: str, protocol: str, family: str) -> Answer:
    address, port = target(row, kind, protocol, family)
    timeout_s = DROPPED_S if row.outcome == "dropped" else ANSWERED_S
    probe = {"TCP": probes.tcp, "UDP": probes.udp}[protocol]
    client = cluster.outside if row.client == "outside" else cluster.netns(row.client, f"shop/client-{row.client}")
    return probe(client, address, port, timeout_s, (client_ip(row, family), next(_source_ports)))


@pytest.mark.parametrize("forwarding", FORWARDINGS)
@pytest.mark.parametrize("entry", NODE_IPS)
def test_both_nodes_serve(cluster: NorthSouth, forwarding: str, entry: str) -> None:
    """By either node, and on live connections the same backend goes on answering."""
    row = Row(forwarding, PROTOCOLS, "Cluster", "both", entry, "routed", "")
    for protocol, family in itertools.product(PROTOCOLS, FAMILIES):
        kind = probes.STREAM if protocol == "TCP" else probes.DATAGRAM
        served = set()
        for _ in range(30):
            address, port = target(row, "LoadBalancer", protocol, family)
            source = (CLIENT_IPS[family], next(_source_ports))
            with probes.Connection(cluster.outside, kind, address, port, source) as connection:
                first, *later = (connection.exchange(ANSWERED_S) for _ in range(3))
                assert first
                assert {(a.label, a.seen_from) for a in later} == {(first.label, first.seen_from)}
                direct = forwarding == "dsr" or (forwarding == "hybrid" and protocol == "TCP") or first.label == entry
                assert first.seen_from == (CLIENT_IPS if direct else NODE_IPS[entry])[family]
                served.add(first.label)
        assert served == {"n1", "n2"}, (protocol, family)


def test_who_forwards(cluster: NorthSouth, request: pytest.FixtureRequest) -> None:
    """XDP where it is on: what went otherwise would go unnoticed."""
    row = Row("snat", PROTOCOLS, "Cluster", "n2", "n1", "routed", "n2", "n1")
    before = forwarded(cluster)
    for protocol, family in itertools.product(PROTOCOLS, FAMILIES):
        assert asked(cluster, row, "LoadBalancer", protocol, family)
    xdp = request.node.callspec.params["cluster"]
    assert (forwarded(cluster) > before) is (xdp != "off")


def forwarded(cluster: NorthSouth) -> int:
    return int(cluster.agents["n1"].status()["tallies"]["xdp_forwarded"])


# ---- one source port, several flows to one backend, answered directly

FAR = Row("dsr", ("TCP", "UDP"), "Cluster", "n2", "n1", "all", "n2", "client")


def taken(cluster: NorthSouth) -> int:
    return sum(int(agent.status()["drops"].get("TUPLE_TAKEN", 0)) for agent in cluster.agents.values())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("end", ["closed", "broken off"])
def test_a_port_used_again(cluster: NorthSouth, end: str, family: str) -> None:
    """Also towards another frontend: nothing is left of the flow before, at either node."""
    source, before = (CLIENT_IPS[family], next(_source_ports)), taken(cluster)
    for kind in KINDS["all"] if end == "closed" else KINDS["all"] * 2:  # a port that was closed waits (TIME-WAIT)
        with probes.Connection(cluster.outside, probes.STREAM, *target(FAR, kind, "TCP", family), source) as connection:
            for _ in range(2):
                answer = connection.exchange(ANSWERED_S)
                assert (answer.label, answer.seen_from) == ("n2", CLIENT_IPS[family]), kind
            if end == "closed":
                connection.socket.shutdown(socket.SHUT_WR)
                assert connection.socket.recv(1) == b""
            else:
                connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert taken(cluster) == before


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_port_used_twice_at_once(cluster: NorthSouth, protocol: str, family: str) -> None:
    """The second flow goes by way of the node that was asked."""
    source = (CLIENT_IPS[family], next(_source_ports))
    socket_kind = probes.STREAM if protocol == "TCP" else probes.DATAGRAM
    seen = (CLIENT_IPS[family], *[NODE_IPS["n1"][family]] * 2)
    with ExitStack() as stack:
        connections = [
            probes.Connection(cluster.outside, socket_kind, *target(FAR, kind, protocol, family), source)
            for kind in KINDS["all"]
        ]
        for connection in connections:
            stack.enter_context(connection)
        for _ in range(2):
            answers = [connection.exchange(ANSWERED_S) for connection in connections]
            assert [(answer.label, answer.seen_from) for answer in answers] == [("n2", ip) for ip in seen]
