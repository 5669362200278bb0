"""An agent on each node over an API server and CNI: pods get addresses and identities, policies hold across nodes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from agents import allow_from, policy
from kube_cluster import FAMILIES, EitherCluster, block_of
from probes import Server, tcp

PORT = 8080


@pytest.fixture(scope="module")
def cluster(
    datapath_host: None, over: type[EitherCluster], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EitherCluster]:
    with over(tmp_path_factory.mktemp("kube"), "n1", "n2") as cluster:
        cluster.start()
        yield cluster


@pytest.mark.parametrize("family", FAMILIES)
def test_policy_between_nodes(cluster: EitherCluster, family: str) -> None:
    cluster.apply(policy("shop/web", {"app": "web"}, ingress=allow_from(app="client")))
    web = cluster.add(f"n2/shop/web-{family}", app="web")
    client, other = (
        cluster.add(f"n1/shop/client-{family}", app="client"),
        cluster.add(f"n1/shop/other-{family}", app="other"),
    )
    near = cluster.add(f"n2/shop/near-{family}", app="client")
    assert [block_of(pod.ip(family)) for pod in (web, client, near)] == [2, 1, 2]
    with Server(web.netns, "tcp", PORT, "web"):
        assert tcp(client.netns, web.ip(family), PORT)
        assert tcp(near.netns, web.ip(family), PORT)
        assert not tcp(other.netns, web.ip(family), PORT, 1.0)
