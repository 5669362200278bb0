"""Pods ask somebody outside the cluster, with the node's address or their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import probes
import pytest
from north_south import (
    CLIENT_IPS,
    FAMILIES,
    NODE_IPS,
    NODES,
    OTHER_CLIENT_IPS,
    POD_CIDRS,
    PROTOCOLS,
    NorthSouth,
    pod,
    pod_ip,
)
from probes import Answer, Server

NUMBER = 60
"""Of the pod's addresses: test_north_south* have those below."""
PORT = 7000
SILENCE_S = 0.3


@pytest.fixture(scope="module")
def cluster(north_south: NorthSouth) -> Iterator[NorthSouth]:
    """Servers at each address of the client outside, and at the nodes. The client has no way to pods."""
    north_south.write("masquerade.yaml", pod("shop/asking", "n1", NUMBER))
    north_south.run("--xdp", "off")
    with ExitStack() as stack:
        for protocol in PROTOCOLS:
            for ip in (*CLIENT_IPS.values(), *OTHER_CLIENT_IPS.values()):
                stack.enter_context(Server(north_south.outside, protocol.lower(), PORT, "outside", ip))
            for name in NODES:
                stack.enter_context(Server(north_south.nodes[name], protocol.lower(), PORT, name))
        yield north_south


@contextmanager
def way_to_pods(cluster: NorthSouth, family: str) -> Iterator[None]:
    route = f"{POD_CIDRS['n1'][family]} via {NODE_IPS['n1'][family]}"
    cluster.outside.ip(f"route add {route}")
    try:
        yield
    finally:
        cluster.outside.ip(f"route del {route}")


def ask(cluster: NorthSouth, protocol: str, address: str, timeout_s: float = probes.TIMEOUT_S) -> Answer:
    asking = cluster.netns("n1", "shop/asking")
    if protocol == "ICMP":
        return probes.ping(asking, address, timeout_s, 2000)  # in fragments
    probe = {"TCP": probes.tcp, "UDP": probes.udp}[protocol]
    return probe(asking, address, PORT, timeout_s)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", [*PROTOCOLS, "ICMP"])
def test_out_of_the_cluster(cluster: NorthSouth, protocol: str, family: str) -> None:
    for _ in range(3):
        answer = ask(cluster, protocol, CLIENT_IPS[family])
        assert answer
        if protocol != "ICMP":
            assert (answer.label, answer.seen_from) == ("outside", NODE_IPS["n1"][family])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", [*PROTOCOLS, "ICMP"])
def test_to_a_block_that_is_excluded(cluster: NorthSouth, protocol: str, family: str) -> None:
    assert ask(cluster, protocol, OTHER_CLIENT_IPS[family], SILENCE_S).result == "timeout"
    with way_to_pods(cluster, family):
        answer = ask(cluster, protocol, OTHER_CLIENT_IPS[family])
    assert answer
    if protocol != "ICMP":
        assert (answer.label, answer.seen_from) == ("outside", pod_ip("n1", NUMBER, family))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", NODES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_nodes_see_who_asks(cluster: NorthSouth, protocol: str, name: str, family: str) -> None:
    """Other nodes too: their manifests tell their addresses."""
    answer = ask(cluster, protocol, NODE_IPS[name][family])
    assert (answer.label, answer.seen_from) == (name, pod_ip("n1", NUMBER, family))
