"""What a pod forges for a pod of another node: packets in the name of a third, wrapped in what nodes themselves use."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
import rig
from agents import GONE_S
from encrypted_cluster import PATIENT_S, STRICT, meet, use
from forged import TUNNEL_PORT, by_device, datagram, hearing, senders, tunnelled
from kube_cluster import FAMILIES, KubeCluster, node_ips
from probes import Server, udp

PORT = 8080


@pytest.fixture(scope="module", params=[(), ("--node-encryption",)], ids=["pods", "nodes too"])
def cluster(
    backends: str, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[KubeCluster]:
    flags = (*STRICT, "--routing", "vxlan", *request.param)
    with KubeCluster(tmp_path_factory.mktemp("kube"), "n1", "n2", "n3", flags=flags) as cluster:
        use(cluster, backends)
        cluster.start()
        meet(cluster)
        for where in ("n1/shop/forger", "n2/shop/neighbour", "n2/shop/web", "n3/shop/other"):
            cluster.add(where, app=where.rsplit("/", 1)[1])
        yield cluster


def drops(cluster: KubeCluster, node: str, *reasons: str) -> int:
    """All of them, or for some reasons."""
    found = cluster.agents[node].status()["drops"]
    return sum(int(count) for reason, count in found.items() if not reasons or reason in reasons)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("forger", ["n1/shop/forger", "n2/shop/neighbour"])
def test_a_pod_s_own_tunnel(cluster: KubeCluster, forger: str, family: str) -> None:
    """It asks a node to unwrap it."""
    web, other = cluster.pods["n2/shop/web"], cluster.pods["n3/shop/other"]
    node = forger.split("/", maxsplit=1)[0]
    with hearing(web, family, PORT + 1) as heard:
        before = drops(cluster, node)
        inner = datagram(other.ip(family), web.ip(family), PORT + 1)
        with cluster.pods[forger].netns.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sending:
            sending.sendto(tunnelled(cluster, "n2", inner), (node_ips(2)["v4"], TUNNEL_PORT))
        assert senders(heard) == []
        rig.wait_until(lambda: drops(cluster, node) > before, GONE_S, "it is dropped")
    with Server(web.netns, "udp", PORT, "web"):
        answer = udp(cluster.pods["n1/shop/forger"].netns, web.ip(family), PORT, PATIENT_S)
        assert answer.seen_from == cluster.pods["n1/shop/forger"].ip(family)


@pytest.mark.parametrize("family", FAMILIES)
def test_by_a_node_that_lies(cluster: KubeCluster, family: str) -> None:
    """In the name of a third node's pod, of one of the receiver's, of these nodes, of the world."""
    web, own, other, near = (
        cluster.pods[name] for name in ("n2/shop/web", "n1/shop/forger", "n3/shop/other", "n2/shop/neighbour")
    )
    world = {"v4": "198.51.100.7", "v6": "2001:db8:7::7"}[family]
    forged = [other.ip(family), near.ip(family), node_ips(3)[family], node_ips(2)[family], world]
    with hearing(web, family, PORT + 1) as heard:
        by_device(cluster, "n1", *(datagram(one, web.ip(family), PORT + 1) for one in (*forged, own.ip(family))))
        assert senders(heard) == [own.ip(family)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("named", ["n3/shop/other", "n1/shop/forger", "n2/shop/neighbour"])
@pytest.mark.parametrize("sender", ["pod", "node"])
def test_a_tunnel_within_the_tunnel(cluster: KubeCluster, sender: str, named: str, family: str) -> None:
    """That the wrapping came by WireGuard says nothing of what is in it: whose that may be nobody has looked."""
    web = cluster.pods["n2/shop/web"]
    outer = cluster.pods["n1/shop/forger"].ip() if sender == "pod" else node_ips(1)["v4"]
    with hearing(web, family, PORT + 1) as heard:
        before = drops(cluster, "n2", "UNENCRYPTED")
        inner = tunnelled(cluster, "n2", datagram(cluster.pods[named].ip(family), web.ip(family), PORT + 1))
        by_device(cluster, "n1", datagram(outer, node_ips(2)["v4"], TUNNEL_PORT, inner))
        assert senders(heard) == []
        rig.wait_until(lambda: drops(cluster, "n2", "UNENCRYPTED") > before, GONE_S, "it came, and was dropped")


@pytest.mark.parametrize("family", FAMILIES)
def test_to_nobody_here(cluster: KubeCluster, family: str) -> None:
    """What is for neither a pod nor the node goes no further, by whatever route the node has."""
    own = cluster.pods["n1/shop/forger"].ip(family)
    nobody = {"v4": "10.244.2.250", "v6": "fd00:10:244:2::250"}[family]
    before = drops(cluster, "n2", "WRONG_DESTINATION")
    by_device(cluster, "n1", *[datagram(own, nobody, PORT)] * 10)
    rig.wait_until(lambda: drops(cluster, "n2", "WRONG_DESTINATION") >= before + 10, GONE_S, "they are dropped")
