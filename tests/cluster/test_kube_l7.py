"""HTTP rules and named ports between pods of two nodes that CNI attached; what the commands show of all of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import rig
from agents import START_S, RunningAgent, allow_from, policy
from kube_cluster import FAMILIES, EitherCluster, KubePod
from l7_policies import cnp, ingress
from probes import Server, tcp
from web import Client, WebServer

PORT, METRICS = 8080, 9090
SHORT_S = 0.4
SIDECAR = {
    "name": "sidecar",
    "image": "none",
    "restartPolicy": "Always",
    "ports": [{"name": "metrics", "containerPort": METRICS, "protocol": "TCP"}],
}


@pytest.fixture(scope="module")
def cluster(
    datapath_host: None, over: type[EitherCluster], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EitherCluster]:
    with over(tmp_path_factory.mktemp("kube"), "n1", "n2") as cluster:
        cluster.start()
        cluster.apply(cnp("shop/web", {"app": "web"}, ingress=ingress({"method": "GET", "path": "/public"})))
        cluster.add("n1/shop/client", app="client")
        cluster.add("n1/shop/other", app="other")
        cluster.add("n2/shop/web", app="web")
        cluster.add("n2/shop/measured", spec={"initContainers": [SIDECAR]}, app="measured")
        for agent in cluster.agents.values():
            agent.await_listeners()
        yield cluster


def pod(cluster: EitherCluster, name: str) -> KubePod:
    return next(one for one in cluster.pods.values() if one.short == name)


@pytest.mark.parametrize("family", FAMILIES)
def test_http_rules_between_nodes(cluster: EitherCluster, family: str) -> None:
    client, web = pod(cluster, "client"), pod(cluster, "web")
    with WebServer(web.netns, PORT) as server, Client(client.netns, web.ip(family), PORT) as connection:
        for path, status in (("/public", 200), ("/secret", 403), ("/public", 200)):
            assert connection.get(path).status == status
        assert {(seen.path, seen.source) for seen in server.seen} == {("/public", client.ip(family))}
        assert not tcp(pod(cluster, "other").netns, web.ip(family), PORT, SHORT_S)
    agent = cluster.agents["n2"]
    (refused,) = agent.await_flows(
        lambda flow: flow["source"]["ip"] == client.ip(family) and flow["l7"], 1, "--verdict", "DROPPED"
    )
    assert (refused["source"]["pod"], refused["destination"]["pod"]) == ("client", "web")


@pytest.mark.parametrize("family", FAMILIES)
def test_ports_by_name_are_those_of_sidecars_too(cluster: EitherCluster, family: str) -> None:
    """At the pod itself, and for a client of another node, whose own rule names the port."""
    client, measured = pod(cluster, "client"), pod(cluster, "measured")
    named = [{"port": "metrics", "protocol": "TCP"}]
    cluster.apply(
        policy("shop/measured", {"app": "measured"}, ingress=[{**allow_from(app="client")[0], "ports": named}]),
        policy("shop/client", {"app": "client"}, egress=[{"ports": named}], policyTypes=["Egress"]),
    )
    with Server(measured.netns, "tcp", METRICS, "metrics"), Server(measured.netns, "tcp", PORT, "main"):
        assert tcp(client.netns, measured.ip(family), METRICS)
        assert not tcp(client.netns, measured.ip(family), PORT, SHORT_S)
        cluster.api.delete("networkpolicies", "measured", "shop")
        rig.wait_until(
            lambda: tcp(pod(cluster, "other").netns, measured.ip(family), PORT, SHORT_S), START_S, "it is gone"
        )
        assert not tcp(client.netns, measured.ip(family), PORT, SHORT_S), "by the client's own rule"
    cluster.api.delete("networkpolicies", "client", "shop")


def test_endpoints_and_identities(cluster: EitherCluster) -> None:
    """Pods of other nodes with their labels; and one number stands for the same everywhere."""
    numbers: list[dict[str, int]] = []
    for name, agent in cluster.agents.items():
        shown = {one["name"]: one for one in agent.json("endpoints")}
        assert set(shown) == {one.short for one in cluster.pods.values()}
        for one in cluster.pods.values():
            row = shown[one.short]
            here = one.agent.name == name
            assert row["labels"] == {"app": one.short}
            assert row["ips"] == one.ips
            assert row["problem"] == ""
            assert (row["node"], row["state"]) == (one.agent.name, "ready" if here else "remote")
            assert bool(row["interface"]) is here
        numbers.append({short: row["identity"] for short, row in shown.items()})
        identities = {one["id"]: one for one in agent.json("identities")}
        for short, number in numbers[-1].items():
            assert identities[number]["labels"]["app"] == short
            assert (identities[number]["namespace"], identities[number]["endpoints"]) == ("shop", 1)
    assert numbers[0] == numbers[1]


def _ready(agent: RunningAgent) -> dict[str, Any]:
    """Its status, once nothing is wanting."""

    def status() -> dict[str, Any] | None:
        found = agent.status()
        return found if (found["state"], found["reasons"]) == ("ready", []) else None

    found = rig.wait_until(status, START_S, "nothing is wanting")
    assert found
    return found


def test_nodes_policies_and_status(cluster: EitherCluster) -> None:
    for name, agent in cluster.agents.items():
        nodes = {one["name"]: one for one in agent.json("nodes")}
        assert set(nodes) == {"n1", "n2"}
        assert [one for one in nodes if nodes[one]["local"]] == [name]
        assert {one: nodes[one]["pods"] for one in nodes} == {"n1": 2, "n2": 2}
        (web,) = (one for one in agent.json("policies") if one["name"] == "web")
        assert (web["kind"], web["status"]) == ("CiliumNetworkPolicy", "accepted")
        assert web["endpoints"] == (["shop/web"] if name == "n2" else [])
        status = _ready(agent)
        assert status["endpoints"] == {"ready": 2, "remote": 2}
        assert status["cluster"]["unreachable_s"] is None
        assert not [one for one in status["cluster"]["resources"] if one["problem"]]


def test_flows_name_pods_of_other_nodes(cluster: EitherCluster) -> None:
    other, web = pod(cluster, "other"), pod(cluster, "web")
    assert not tcp(other.netns, web.ip(), PORT, SHORT_S)
    for agent in cluster.agents.values():
        wanted = ("--from-pod", "shop/other", "--to-pod", "shop/web")
        flow = agent.await_flows(lambda flow: flow["destination"]["ip"] == web.ip(), 1, *wanted)[-1]
        assert flow["source"]["labels"] == ["app=other"]
        assert flow["destination"]["labels"] == ["app=web"]
    assert flow["verdict"] == "DROPPED"
