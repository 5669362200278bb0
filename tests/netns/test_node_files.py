"""Nodes that know of each other by the files they write into the folder of manifests: pods of different nodes reach
each other by routes made from these, and a node that has gone is forgotten."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import probes
import pytest
import rig
from agents import START_S, allow_from, policy
from north_south import FAMILIES, NODE_IPS, NODES, POD_CIDRS, NorthSouth, pod, pod_ip
from traffic import DROPPED_S

from agent.routing import tunnel

CLIENT, OTHER, WEB = "shop/client", "shop/other", "shop/web"


class Told(NorthSouth):
    """Nobody makes routes, and (without `nodes`) nobody writes Node manifests: all there is comes of node files."""

    def __init__(self, folder: Path, *flags: str, nodes: bool) -> None:
        super().__init__(folder, "--node-files", str(folder / "manifests" / "told"), *flags, routed=False)
        self.told = folder / "manifests" / "told"
        if not nodes:
            (self.manifests / "nodes.yaml").unlink()
        self.write(
            "pods.yaml",
            pod(CLIENT, "n1", 20, app="client"),
            pod(OTHER, "n1", 21, app="other"),
            pod(WEB, "n2", 10, app="web"),
        )
        self.write("policy.yaml", policy("shop/web", {"app": "web"}, ingress=allow_from(app="client")))

    def routes(self, node: str) -> set[str]:
        found = []
        for family in ("-4", "-6"):
            shown = self.nodes[node].run("ip", "-j", family, "route", "show", "proto", "71").stdout
            found += json.loads(shown or "[]")
        return {route["dst"] for route in found if "gateway" in route}

    def await_routes(self, node: str, blocks: set[str]) -> None:
        what = f"{node} has routes to {blocks}, not {self.routes(node)}\n{self.agents[node].log()}"
        rig.wait_until(lambda: self.routes(node) == blocks, START_S, what)


@pytest.fixture(scope="module", params=[("native", False), ("native", True), ("vxlan", False)])
def cluster(
    datapath_host: None, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Told]:
    mode, nodes = request.param
    cluster = Told(tmp_path_factory.mktemp("told"), "--routing", mode, "--mtu", "1400", nodes=nodes)
    with cluster:
        cluster.run()
        for name, other in (NODES, NODES[::-1]):
            cluster.await_routes(name, set(POD_CIDRS[other].values()))
        yield cluster


def test_each_tells_what_it_is(cluster: Told) -> None:
    assert {path.name for path in cluster.told.iterdir()} == {f"{name}.json" for name in NODES}
    for name in NODES:
        spec = json.loads((cluster.told / f"{name}.json").read_text())["spec"]
        assert set(spec["addresses"]) == set(NODE_IPS[name].values())
        assert spec["podCIDRs"] == list(POD_CIDRS[name].values())
        assert cluster.agents[name].status()["problems"] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_policy_knows_who_sends(cluster: Told, family: str) -> None:
    with cluster.served("n2/shop/web"):
        for name, allowed in ((CLIENT, True), (OTHER, False)):
            netns = cluster.netns("n1", name)
            answer = probes.tcp(netns, pod_ip("n2", 10, family), 8080, probes.TIMEOUT_S if allowed else DROPPED_S)
            assert answer.result == ("ok" if allowed else "timeout"), answer
            assert not allowed or answer.seen_from == pod_ip("n1", 20, family)


def test_life_of_a_file(datapath_host: None, tmp_path: Path) -> None:
    """It stays as it is through a restart, a claim of another's block is refused, and a node cleaned up after is
    forgotten by the others."""
    cluster = Told(tmp_path, nodes=False)
    with cluster:
        cluster.run()
        cluster.await_routes("n1", set(POD_CIDRS["n2"].values()))
        own = cluster.told / "n2.json"
        before = own.stat()
        second = cluster.agents["n2"]
        second.kill()
        second.start()
        assert (own.stat().st_ino, own.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
        liar = {"addresses": ["192.0.2.77"], "podCIDRs": [POD_CIDRS["n2"]["v4"], "10.244.77.0/24"]}
        about = {"apiVersion": "gatehouse.io/v1alpha1", "kind": "NodeEndpoints", "metadata": {"name": "liar"}}
        cluster.write("liar.json", about | {"spec": liar})
        cluster.await_routes("n1", {*POD_CIDRS["n2"].values(), "10.244.77.0/24"})
        problems = {p["subject"]: p["message"] for p in cluster.agents["n1"].status()["problems"]}
        assert problems == {"NodeEndpoints liar": "block 10.244.2.0/24 overlaps one of node n2: it is not taken"}
        cluster.agents["n1"].delete("liar.json")
        cluster.await_routes("n1", set(POD_CIDRS["n2"].values()))
        assert second.stop() == 0
        assert own.exists()
        second.cli("cleanup", check=True)
        assert not own.exists()
        cluster.await_routes("n1", set())


@pytest.mark.parametrize("mode", ["native", "vxlan"])
def test_nodes_that_go_while_there_is_no_agent(datapath_host: None, tmp_path: Path, mode: str) -> None:
    """The last of them leaves no route behind in an agent that starts alone."""
    cluster = Told(tmp_path, "--routing", mode, nodes=False)
    with cluster:
        cluster.run()
        cluster.await_routes("n1", set(POD_CIDRS["n2"].values()))
        first, second = cluster.agents["n1"], cluster.agents["n2"]
        first.kill()
        assert second.stop() == 0
        second.cli("cleanup", check=True)
        assert cluster.routes("n1") == set(POD_CIDRS["n2"].values()), "nobody was there to take them away"
        first.start()
        assert cluster.routes("n1") == set()
        assert tunnel.NAME not in cluster.nodes["n1"].run("ip", "link").stdout
