"""What is left of an agent over an API server and CNI when it is to go: nothing, also while pods are still attached."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import rig
from agents import START_S, policy
from chained_pods import Chain, missing
from kube_cluster import FAMILIES, KubeAgent, KubeCluster, KubePod
from l7_policies import cnp, ingress
from probes import Server, tcp

PORT = 8080
SHORT_S = 0.4
FLAGS = ("--routing", "vxlan", "--masquerade", "--mtu", "0")
SHOWN = (
    ("ip", "-o", "link"),
    ("ip", "-o", "address"),
    ("ip", "route", "show", "table", "all"),
    ("ip", "-6", "route", "show", "table", "all"),
    ("ip", "rule"),
    ("ip", "-6", "rule"),
    ("tc", "qdisc"),
    ("sysctl", "--all", "--ignore", "--pattern", r"^net\.(core|ipv4|ipv6)\."),
)


GONE_S = 30.0


class Before:
    """A node as it was, but for what its API server and its runtime did."""

    def __init__(self, agent: KubeAgent) -> None:
        self._agent = agent
        shown = ("ip", "-6", "address")
        rig.wait_until(lambda: "tentative" not in agent.node.run(*shown).stdout, START_S, "its addresses are in use")
        self._shown = self._look()

    def _look(self) -> dict[str, list[str]]:
        found = {" ".join(command): self._agent.node.run(*command).stdout.splitlines() for command in SHOWN}
        for folder in (self._agent.conf, self._agent.bin):
            found[folder.name] = sorted(path.name for path in folder.glob("*"))
        return found

    def changed(self) -> dict[str, set[str]]:
        now = self._look()
        found = {what: set(lines) ^ set(now[what]) for what, lines in self._shown.items()}
        return {what: lines for what, lines in found.items() if lines}


@pytest.fixture
def cluster(datapath_host: None, tmp_path: Path) -> Iterator[KubeCluster]:
    """With state of every sort on its nodes: routes and a device of VXLAN, sysctls, Envoy, links, programs."""
    with KubeCluster(tmp_path, "n1", "n2", flags=FLAGS) as cluster:
        yield cluster


def use(cluster: KubeCluster) -> None:
    cluster.apply(
        cnp("shop/web", {"app": "web"}, ingress=ingress({"path": "/public"})),
        policy("shop/alone", {"app": "alone"}, ingress=[]),
    )
    for agent in cluster.running():
        agent.await_listeners()


def links_inside(pod: KubePod) -> list[str]:
    return pod.netns.run("ip", "-o", "link").stdout.splitlines()


def await_as_before(before: Before, *but: str) -> None:
    try:
        rig.wait_until(lambda: before.changed().keys() <= set(but), GONE_S)
    except AssertionError:
        raise AssertionError(f"all is as it was but for {before.changed()}") from None


def test_cleanup_while_pods_are_attached(cluster: KubeCluster) -> None:
    """As after an agent that was killed: the links of pods go, too, for nobody would judge what they send."""
    agent = cluster.agents["n1"]
    before = Before(agent)
    cluster.start()
    use(cluster)
    web, alone = cluster.add("n1/shop/web", app="web"), cluster.add("n1/shop/alone", app="alone")
    cluster.add("n2/shop/client", app="client")
    changed = before.changed()
    assert {"ip -o link", "ip route show table all", "tc qdisc", "net.d", "bin"} <= changed.keys()
    refused = agent.cli("cleanup")
    assert refused.returncode != 0, "not while it runs"
    agent.kill()
    said = agent.cli("cleanup", check=True).stdout
    agent.gone(said)
    await_as_before(before, "bin")
    rig.wait_until(lambda: len(links_inside(web)) == len(links_inside(alone)) == 1, GONE_S, "only lo is left")
    assert agent.cni("DEL", web).status == 0, "the plugin is still there for what runtimes have to delete"
    assert "nothing to remove" in agent.cli("cleanup", check=True).stdout
    agent.start()  # and it can begin anew
    late = cluster.add("n1/shop/late", app="web")
    assert agent.endpoint(late.name)["state"] == "ready"


def test_an_agent_that_removes_everything_when_it_stops(cluster: KubeCluster) -> None:
    agent = cluster.agents["n2"]
    before = Before(agent)
    agent.flags = (*agent.flags, "--remove-on-exit")
    cluster.start()
    use(cluster)
    cluster.add("n2/shop/web", app="web")
    cluster.remove("n2/shop/web")
    assert agent.stop() == 0, agent.log()
    agent.gone()
    await_as_before(before)


def test_cleanup_of_a_chained_agent_leaves_the_others_links(cluster: KubeCluster) -> None:
    """Without programs, which would let nothing pass any more."""
    if why := missing():
        pytest.skip(why)
    chain = Chain(cluster)
    agent = chain.agent
    cluster.start()
    chain.await_written()
    use(cluster)
    alone, other = chain.add("alone", app="alone"), chain.add("other", app="other")
    with Server(alone.netns, "tcp", PORT, "alone"):
        assert not tcp(other.netns, alone.ip(), PORT, SHORT_S)
        agent.kill()
        said = agent.cli("cleanup", check=True).stdout
        agent.gone(said)
        assert [path.name for path in agent.conf.iterdir()] == ["10-ptp.conf"]
        assert "clsact" not in agent.node.run("tc", "qdisc").stdout
        for family in FAMILIES:
            assert tcp(other.netns, alone.ip(family), PORT), "the other plugin's network is as it was"
