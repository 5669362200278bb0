"""VXLAN between nodes that do not encrypt says itself whose packets it carries: no pod may speak it to a node."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
import rig
from agents import GONE_S
from forged import TUNNEL_PORT, datagram, hearing, senders, tunnelled
from kube_cluster import FAMILIES, KubeAgent, KubeCluster, node_ips
from probes import Server, udp

PORT = 8080
ANSWERED_S = 30.0


@pytest.fixture(scope="module")
def cluster(datapath_host: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeCluster]:
    flags = ("--routing", "vxlan")
    with KubeCluster(tmp_path_factory.mktemp("kube"), "n1", "n2", "n3", flags=flags) as cluster:
        cluster.start()
        for where in ("n1/shop/forger", "n2/shop/neighbour", "n2/shop/web", "n3/shop/other"):
            cluster.add(where, app=where.rsplit("/", 1)[1])
        yield cluster


def dropped(agent: KubeAgent) -> int:
    return int(agent.status()["drops"].get("UNSUPPORTED_PROTOCOL", 0))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("forger", ["n1/shop/forger", "n2/shop/neighbour"])
def test_in_a_tunnel_of_its_own(cluster: KubeCluster, forger: str, family: str) -> None:
    """Under the address of a third node's pod; or of a node, or of nobody."""
    web, other = cluster.pods["n2/shop/web"], cluster.pods["n3/shop/other"]
    agent = cluster.agents[forger.split("/", maxsplit=1)[0]]
    before = dropped(agent)
    sources = [other.ip(family), node_ips(3)[family], {"v4": "198.51.100.7", "v6": "2001:db8:7::7"}[family]]
    with (
        hearing(web, family, PORT + 1) as heard,
        cluster.pods[forger].netns.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sending,
    ):
        for source in sources:
            inner = datagram(source, web.ip(family), PORT + 1)
            sending.sendto(tunnelled(cluster, "n2", inner), (node_ips(2)["v4"], TUNNEL_PORT))
        assert senders(heard) == []
    rig.wait_until(lambda: dropped(agent) >= before + len(sources), GONE_S, "they are dropped where they began")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_port_is_a_pods_as_any_other(cluster: KubeCluster, family: str) -> None:
    client, web = cluster.pods["n1/shop/forger"], cluster.pods["n2/shop/web"]
    with Server(web.netns, "udp", TUNNEL_PORT, "web"):
        assert udp(client.netns, web.ip(family), TUNNEL_PORT, ANSWERED_S).seen_from == client.ip(family)
