"""Behind another plugin's routed veths: pods resolve their gateway, and policy holds among them and towards others."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import rig
from agents import START_S, allow_from, policy
from kube_cluster import FAMILIES, EitherCluster, KubePod, blocks, node_ips
from probes import Server, ping, tcp, udp

PLUGINS = Path("/usr/lib/cni")
FIRST = "10-ptp.conf"
PORT = 8080
SHORT_S = 0.4
CONFIGURATION = {"cniVersion": "1.0.0", "name": "chain", "type": "ptp", "ipam": {"type": "static"}}


class Chain:
    """n1, where pods' veths are ptp's."""

    def __init__(self, cluster: EitherCluster) -> None:
        self.cluster = cluster
        self.agent, self.node = cluster.agents["n1"], cluster.nodes["n1"]
        self._numbers = iter(range(2, 250))

    def add(self, name: str, **labels: str) -> KubePod:
        pod = self.cluster.add(f"n1/shop/{name}", attach=False, spec=None, **labels)
        number = next(self._numbers)
        v4, v6 = (block.partition("/")[0] for block in blocks(1).values())
        ipam = {
            "type": "static",
            "addresses": [
                {"address": f"{v4.removesuffix('0')}{number}/24", "gateway": v4.removesuffix("0") + "1"},
                {"address": f"{v6}{number:x}/64", "gateway": f"{v6}1"},
            ],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        }
        self._ptp("ADD", pod, ipam)
        done = self.agent.cni("ADD", pod, version="1.0.0", name="chain", prevResult=pod.result)
        assert (done.status, done.json) == (0, pod.result), (done.output, done.errors, self.agent.log())
        for address in node_ips(1).values():  # ptp does not wait until the gateway may use its IPv6 address
            rig.wait_until(partial(ping, pod.netns, address, 0.2), START_S, "the gateway answers")
        return pod

    def remove(self, pod: KubePod) -> None:
        done = self.agent.cni("DEL", pod, version="1.0.0", name="chain", prevResult=pod.result)
        assert done.status == 0, (done.output, done.errors)
        self._ptp("DEL", pod, {"type": "static"})

    def _ptp(self, command: str, pod: KubePod, ipam: dict[str, Any]) -> None:
        called = {
            **os.environ,
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": pod.container,
            "CNI_NETNS": pod.netns.path,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(PLUGINS),
        }
        done = self.node.run(str(PLUGINS / "ptp"), input=json.dumps(CONFIGURATION | {"ipam": ipam}), env=called)
        pod.result = json.loads(done.stdout or "{}")


@pytest.fixture(scope="module")
def chain(datapath_host: None, over: type[EitherCluster], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    if not (PLUGINS / "ptp").exists():
        pytest.skip("the CNI plugins of Debian's containernetworking-plugins are not in /usr/lib/cni")
    with over(tmp_path_factory.mktemp("kube"), "n1", "n2") as cluster:
        chained = cluster.agents["n1"]
        (chained.conf / FIRST).write_text(json.dumps(CONFIGURATION))
        chained.flags = (*chained.flags, "--cni-chain", FIRST)
        cluster.start()
        rig.wait_until(lambda: len(list(chained.conf.iterdir())) > 1, START_S, "the chain is written")
        made = Chain(cluster)
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
        rig.wait_until(lambda: tcp(far.netns, web.ip(family), PORT), START_S, "the nodes know of each other")
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
