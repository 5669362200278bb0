"""Behind another plugin's routed veths: pods resolve their gateway, and policy holds among them and towards others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import rig
from agents import START_S, allow_from, policy
from chained_pods import Chain, missing
from kube_cluster import FAMILIES, EitherCluster, node_ips
from probes import Server, ping, tcp, udp

PORT = 8080
SHORT_S = 0.4


@pytest.fixture(scope="module")
def chain(datapath_host: None, over: type[EitherCluster], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    if why := missing():
        pytest.skip(why)
    with over(tmp_path_factory.mktemp("kube"), "n1", "n2") as cluster:
        made = Chain(cluster)
        cluster.start()
        made.await_written()
        yield made


@pytest.mark.parametrize("family", FAMILIES)
def test_policy_between_pods_of_the_node(chain: Chain, family: str) -> None:
    chain.cluster.apply(policy("shop/web", {"app": "web"}, ingress=allow_from(app="client")))
    web = chain.add(f"web-{family}", app="web")
    client, other = chain.add(f"client-{family}", app="client"), chain.add(f"other-{family}", app="other")
    with Server(web.netns, "tcp", PORT, "web"), Server(web.netns, "udp", PORT, "web"), Server(other.netns, "tcp", PORT):
        for probe in (tcp, udp):
            assert probe(client.netns, web.ip(family), PORT).seen_from == client.ip(family)
            assert not probe(other.netns, web.ip(family), PORT, SHORT_S)
        assert tcp(web.netns, other.ip(family), PORT), "its egress is not isolated"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_node_and_other_nodes(chain: Chain, family: str) -> None:
    """What comes by the stack: the node asks for the pod's link address, and the pod for its gateway's."""
    chain.cluster.apply(policy("shop/web", {"app": "web"}, ingress=allow_from(app="client")))
    web = chain.add(f"near-{family}", app="web")
    far = chain.cluster.add(f"n2/shop/far-{family}", app="client")
    farther = chain.cluster.add(f"n2/shop/farther-{family}", app="other")
    for netns in (chain.node, web.netns):
        netns.run("ip", "neigh", "flush", "all")
    with Server(web.netns, "tcp", PORT, "web"), Server(far.netns, "tcp", PORT, "far"):
        rig.wait_until(lambda: tcp(far.netns, web.ip(family), PORT, 1.0), START_S, "the nodes know of each other")
        assert not tcp(farther.netns, web.ip(family), PORT, SHORT_S)
        assert tcp(chain.node, web.ip(family), PORT), "the node reaches its pods"
        assert tcp(web.netns, far.ip(family), PORT).seen_from == web.ip(family)
        assert ping(web.netns, node_ips(1)[family])


def test_nothing_is_left(chain: Chain) -> None:
    pod = chain.add("brief", app="brief")
    assert "shop/brief" in {f"{e['namespace']}/{e['name']}" for e in chain.agent.json("endpoints")}
    link = next(one["name"] for one in pod.result["interfaces"] if not one.get("sandbox"))
    assert link in chain.node.run("ip", "-o", "link").stdout
    address = pod.ip("v4")
    chain.remove(pod)
    assert link not in chain.node.run("ip", "-o", "link").stdout
    assert address not in chain.node.run("ip", "route").stdout
