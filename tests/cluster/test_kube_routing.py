"""Pods of two nodes over VXLAN, and what leaves the cluster."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import rig
from agents import START_S
from kube_cluster import FAMILIES, SERVER_IP, EitherCluster
from probes import Server, ping, tcp, udp

PORT = 8080


@pytest.fixture(scope="module")
def cluster(
    datapath_host: None, over: type[EitherCluster], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EitherCluster]:
    flags = ("--routing", "vxlan", "--mtu", "0", "--masquerade")
    with over(tmp_path_factory.mktemp("kube"), "n1", "n2", flags=flags) as cluster:
        cluster.start()
        yield cluster


@pytest.mark.parametrize("family", FAMILIES)
def test_vxlan(cluster: EitherCluster, family: str) -> None:
    """As large as they may be, and in fragments; with the pods' own addresses."""
    web, client = cluster.add(f"n2/shop/web-{family}", app="web"), cluster.add(f"n1/shop/client-{family}", app="client")
    with Server(web.netns, "tcp", PORT, "web"), Server(web.netns, "udp", PORT, "web"):
        for probe in (tcp, udp):
            answer = rig.wait_until(
                partial(probe, client.netns, web.ip(family), PORT), START_S, "the nodes know of each other"
            )
            assert answer.seen_from == client.ip(family)
    assert "mtu 1450" in client.netns.run("ip", "link", "show", "eth0").stdout
    for size in (1450 - 48, 4000):
        assert ping(client.netns, web.ip(family), size=size)


def test_what_leaves_the_cluster_has_the_nodes_address(cluster: EitherCluster) -> None:
    client = cluster.add("n1/shop/leaving", app="client")
    with Server(cluster.outside, "tcp", PORT, "outside", SERVER_IP):
        assert tcp(client.netns, SERVER_IP, PORT).seen_from == "192.0.2.11"
