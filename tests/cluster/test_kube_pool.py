"""--ipam pool: nodes take blocks of the pool, whatever the Nodes' podCIDRs say, and pods reach each other."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import pytest
from kube_cluster import FAMILIES, EitherCluster
from probes import Server, tcp

PORT = 8080
POOL = {"v4": "10.200.0.0/16", "v6": "fd00:200::/48"}
CIDRS = ",".join(POOL.values())
FLAGS = ("--ipam", "pool", "--pool", CIDRS, "--pool-block-bits", "24,64", "--cluster-cidrs", CIDRS, "--api-wait-s", "1")


@pytest.fixture(scope="module")
def cluster(
    datapath_host: None, over: type[EitherCluster], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EitherCluster]:
    with over(tmp_path_factory.mktemp("kube"), "n1", "n2", flags=FLAGS) as cluster:
        cluster.start()
        yield cluster


def claims(cluster: EitherCluster, node: str) -> list[str]:
    return sorted(one["spec"]["cidr"] for one in cluster.api.objects("nodeblocks") if one["spec"]["node"] == node)


@pytest.mark.parametrize("family", FAMILIES)
def test_pods_have_addresses_of_their_nodes_blocks_and_reach_each_other(cluster: EitherCluster, family: str) -> None:
    web, client = cluster.add(f"n2/shop/web-{family}", app="web"), cluster.add(f"n1/shop/client-{family}")
    for node, pod in (("n2", web), ("n1", client)):
        ip = ip_address(pod.ip(family))
        assert ip in ip_network(POOL[family])
        assert any(ip in ip_network(block) for block in claims(cluster, node))
    with Server(web.netns, "tcp", PORT, "web"):
        assert tcp(client.netns, web.ip(family), PORT)


def test_a_restart_without_an_api_server_keeps_the_blocks(cluster: EitherCluster) -> None:
    before = claims(cluster, "n1")
    assert len(before) == 2
    agent = cluster.agents["n1"]
    agent.stop()
    cluster.api.stop()
    try:
        agent.start()
        assert agent.json("endpoints") is not None
    finally:
        cluster.api.start()
    later = cluster.add("n1/shop/later")
    assert any(ip_address(later.ip("v4")) in ip_network(block) for block in before)
    assert claims(cluster, "n1") == before
