"""Without strict mode, what a node sends to one that cannot answer: not plaintext, but where pods sent it so before."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from encrypted_cluster import ON, PATIENT_S, listen, meet, plaintext, status, use, uses_kernel
from kube_cluster import FAMILIES, KubeCluster
from probes import Server, tcp

from agent.datapath.maps import Maps
from agent.encryption import userspace

PORT = 8080
SHORT_S = 0.5


@pytest.fixture
def cluster(backends: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeCluster]:
    """With a pod on n2."""
    with KubeCluster(tmp_path_factory.mktemp("kube"), "n1", "n2") as cluster:
        use(cluster, backends)
        cluster.start(*ON)
        cluster.add("n2/shop/web", app="web")
        yield cluster


def silence(cluster: KubeCluster) -> None:
    """Nobody answers by WireGuard on n2 any more, though all know its key."""
    agent = cluster.agents["n2"]
    device, is_kernels = status(agent)["device"], uses_kernel(agent)
    agent.kill()
    if is_kernels:
        cluster.nodes["n2"].ip(f"link delete {device}")
    else:
        assert userspace.end(device)


def test_a_node_without_pods(cluster: KubeCluster) -> None:
    """Nothing of its pods was ever sent in plaintext, and nothing begins to be."""
    meet(cluster)
    one, web = cluster.agents["n1"], cluster.pods["n2/shop/web"]
    one.stop()
    one.cli("cleanup", check=True)
    silence(cluster)
    with listen(cluster) as seen:
        one.start(*ON)
        client = cluster.add("n1/shop/client", app="client")
        for family in FAMILIES:
            assert not tcp(client.netns, web.ip(family), PORT, SHORT_S)
    assert seen.seen() == []
    assert plaintext(cluster) == 0


def test_an_agent_with_other_maps(cluster: KubeCluster) -> None:
    """As after an upgrade. What was encrypted before goes on being so."""
    one, web = cluster.agents["n1"], cluster.pods["n2/shop/web"]
    client = cluster.add("n1/shop/client", app="client")
    with Server(web.netns, "tcp", PORT, "web"):
        meet(cluster)
        assert tcp(client.netns, web.ip(), PORT, PATIENT_S)
    one.stop()
    silence(cluster)
    with Maps.open_pinned(one.instance.pins.maps) as maps:
        maps["encryption"].delete_many([key for key, _ in maps["encryption"].items()])
    one.start(*ON)
    with listen(cluster) as seen:
        for family in FAMILIES:
            assert not tcp(client.netns, web.ip(family), PORT, SHORT_S)
    assert seen.seen() == []
